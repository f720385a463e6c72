"""Requests that are held because there is nothing to give yet. Pure: the time is passed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from common.messages import Request


@dataclass(frozen=True, slots=True)
class Parked:
    """One held request: who to answer, what it asked for, and until when it waits."""

    peer: bytes
    request_id: int
    client: str
    request: Request
    until_s: float


class WaitingRoom:
    """Held requests, in the order of arrival. A repeated request takes the place of the first."""

    def __init__(self) -> None:
        self._parked: dict[tuple[bytes, int], Parked] = {}

    def __iter__(self) -> Iterator[Parked]:
        return iter(list(self._parked.values()))

    def __len__(self) -> int:
        return len(self._parked)

    def add(self, parked: Parked) -> None:
        """Hold a request."""
        self._parked[parked.peer, parked.request_id] = parked

    def discard(self, parked: Parked) -> None:
        """Forget a request that was answered."""
        self._parked.pop((parked.peer, parked.request_id), None)

    def remove_clients(self, names: Iterable[str]) -> None:
        """Forget the requests of clients that are gone or have connected anew."""
        gone = set(names)
        for parked in self:
            if parked.client in gone:
                self.discard(parked)

    def take_expired(self, now_s: float) -> list[Parked]:
        """Forget and return the requests whose wait ran out."""
        expired = [parked for parked in self if parked.until_s <= now_s]
        for parked in expired:
            self.discard(parked)
        return expired

    def next_deadline_s(self) -> float:
        """When the first wait runs out; infinity when nothing is held."""
        return min((parked.until_s for parked in self), default=float("inf"))

    def num_by_kind(self) -> dict[str, int]:
        """Held requests by the name of their message."""
        return dict(Counter(type(parked.request).__name__ for parked in self))
