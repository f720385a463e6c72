"""Where a payload server keeps arrays: the interface, and the one in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from common.codec import Buffer
from common.messages import Promise
from common.types import RolloutHeader, RolloutId

Payload = tuple[RolloutHeader, Sequence[Buffer]]
"""A header and its frames."""


class Backing(Protocol):
    """Keeps the arrays of rollouts by id; not thread-safe."""

    @property
    def promise(self) -> Promise:
        """What a rollout survives once it was added and committed."""
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes of all that is kept."""
        ...

    def add(self, header: RolloutHeader, frames: Sequence[Buffer]) -> None:
        """Keep one rollout, in place of another one of the same id; a second time changes nothing.

        Raises :class:`RefusedError` with code ``full`` where there is no room.
        """
        ...

    def commit(self) -> None:
        """Keep the promise for all that was added.

        Raises :class:`RefusedError` with code ``full`` where that has to wait for room, and
        :class:`FatalError` when the disk fails.
        """
        ...

    def payload(self, rollout_id: RolloutId) -> Payload:
        """Header and frames; raises ``KeyError`` for a rollout that is not kept."""
        ...

    def group_ids(self) -> Sequence[int]:
        """Groups of which anything is kept."""
        ...

    def drop_groups(self, group_ids: Iterable[int]) -> None:
        """Forget these groups; unknown ones are ignored."""
        ...


class MemoryBacking:
    """Arrays in the memory of this process: the promise ``direct``."""

    promise: Promise = "direct"

    def __init__(self) -> None:
        self._groups: dict[int, dict[RolloutId, Payload]] = {}
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays that are kept."""
        return self._num_bytes

    def add(self, header: RolloutHeader, frames: Sequence[Buffer]) -> None:
        """As :meth:`Backing.add`; there is always room."""
        if self._holds(header):
            return
        self.forget(header.rollout_id)
        group = self._groups.setdefault(header.rollout_id.group_id, {})
        group[header.rollout_id] = (header, frames)
        self._num_bytes += sum(header.frame_bytes())

    def _holds(self, header: RolloutHeader) -> bool:
        known = self._groups.get(header.rollout_id.group_id, {}).get(header.rollout_id)
        return known is not None and known[0] == header

    def commit(self) -> None:
        """Memory promises nothing that would have to be waited for."""

    def payload(self, rollout_id: RolloutId) -> Payload:
        """Header and frames; raises ``KeyError`` for a rollout that is not kept."""
        return self._groups[rollout_id.group_id][rollout_id]

    def group_ids(self) -> Sequence[int]:
        """Groups of which anything is kept."""
        return tuple(self._groups)

    def drop_groups(self, group_ids: Iterable[int]) -> None:
        """Forget these groups; unknown ones are ignored."""
        for group_id in group_ids:
            for header, _ in self._groups.pop(group_id, {}).values():
                self._num_bytes -= sum(header.frame_bytes())

    def forget(self, rollout_id: RolloutId) -> None:
        """Forget one rollout, if it is kept."""
        group = self._groups.get(rollout_id.group_id, {})
        dropped = group.pop(rollout_id, None)
        if dropped is not None:
            self._num_bytes -= sum(dropped[0].frame_bytes())
            if not group:
                del self._groups[rollout_id.group_id]
