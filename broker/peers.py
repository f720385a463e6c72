"""Who else could take a piece of work: the clients of one kind that ask for it. Pure.

An answer goes to another client than the one that failed at it, if there is one. Only a client that
asks, and whose weights are the newest that any of them serves, counts: such a client can take any
answer, so nothing waits for one that cannot.
"""

from __future__ import annotations

from collections.abc import Collection

from common.types import WeightVersion


class Peers:
    """Clients that ask for the same kind of work."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._newest: WeightVersion | None = None

    @property
    def names(self) -> Collection[str]:
        """The clients that can take any answer; a live view."""
        return self._names.keys()

    def note(self, name: str, serving: WeightVersion | None = None) -> None:
        """``name`` asks for work, an actor under the weights that it has proved to serve."""
        if serving is not None and (self._newest is None or self._newest < serving):
            self._names.clear()
            self._newest = serving
        if serving == self._newest:
            self._names[name] = None
        else:
            self._names.pop(name, None)

    def discard(self, name: str) -> None:
        """``name`` is gone or another process."""
        self._names.pop(name, None)
