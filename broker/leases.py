"""Who holds what, and for how much longer. Pure: the time is passed in.

A lease is renewed by each heartbeat that names it. One that no heartbeat names for
``lease_s`` has lost its owner, or its owner never saw the reply that granted it; both mean that the
work must go to somebody else. Leases are known by their attempt, which is never used twice; which
attempts a group is held under, its own records say.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from common.messages import Lease


class Work(enum.Enum):
    """What a lease is for."""

    GENERATE = "generate"
    VERIFY = "verify"


class Held(msgspec.Struct, frozen=True, gc=False):
    """One lease in force."""

    owner: str
    lease: Lease
    work: Work


class LeaseTable:
    """Leases in force by attempt, in the order in which they were last named."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._held: dict[int, Held] = {}
        self._named_at_s: OrderedDict[int, float] = OrderedDict()
        self._by_owner: dict[str, set[int]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def get(self, attempt: int) -> Held | None:
        """The lease with this attempt, if it is in force."""
        return self._held.get(attempt)

    def grant(self, held: Held, now_s: float) -> None:
        """Put a new lease in force."""
        attempt = held.lease.attempt
        self._held[attempt] = held
        self._named_at_s[attempt] = now_s
        self._by_owner.setdefault(held.owner, set()).add(attempt)

    def finish(self, attempt: int, index: int) -> None:
        """One index of a lease needs no more work; a lease without indices is over."""
        held = self._held.get(attempt)
        if held is None:
            return
        indices = held.lease.indices
        if indices == (index,):
            self.drop(attempt)
        elif index in indices:
            left = tuple(other for other in indices if other != index)
            lease = Lease(group_id=held.lease.group_id, indices=left, attempt=attempt)
            self._held[attempt] = Held(held.owner, lease, held.work)

    def drop(self, attempt: int) -> Held | None:
        """End a lease and return it, if it was in force."""
        held = self._held.pop(attempt, None)
        if held is not None:
            del self._named_at_s[attempt]
            self._forget_owner(held.owner, attempt)
        return held

    def _forget_owner(self, owner: str, attempt: int) -> None:
        left = self._by_owner[owner]
        left.discard(attempt)
        if not left:
            del self._by_owner[owner]

    def num_by_owner(self) -> dict[str, int]:
        """Leases of each owner that has any."""
        return {owner: len(attempts) for owner, attempts in self._by_owner.items()}

    def renew(self, owner: str, named: Sequence[Lease], now_s: float) -> tuple[Lease, ...]:
        """Renew what ``owner`` names and return those parts that it no longer holds."""
        revoked = []
        for lease in named:
            held = self._held.get(lease.attempt)
            kept: tuple[int, ...] = ()
            if held is not None and held.owner == owner:
                self._named_at_s[lease.attempt] = now_s
                self._named_at_s.move_to_end(lease.attempt)
                kept = held.lease.indices
            if kept == lease.indices:
                continue
            lost = tuple(index for index in lease.indices if index not in kept)
            if lost:
                revoked.append(Lease(group_id=lease.group_id, indices=lost, attempt=lease.attempt))
        return tuple(revoked)

    def take_expired(self, now_s: float) -> list[Held]:
        """End and return all leases that nobody has named for ``lease_s``."""
        due: list[int] = []
        for attempt, at_s in self._named_at_s.items():
            if now_s - at_s < self._lease_s:
                break
            due.append(attempt)
        return [held for held in map(self.drop, due) if held is not None]

    def take_owned(self, owner: str) -> list[Held]:
        """End and return all leases of ``owner``: it started again and knows none of them."""
        attempts = sorted(self._by_owner.get(owner, ()))
        return [held for held in map(self.drop, attempts) if held is not None]
