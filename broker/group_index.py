"""Which groups want what, earliest deadline first, without looking at all groups.

Each live group is filed under what it can give: indices that wait for an actor, rollouts that wait
for a verifier, a whole group that waits for the consumer. Filing again after an event is O(1) in
the number of groups, most events change nothing in how their group is filed, and the indices of a
group in each phase are counted as they move, so that nobody has to look at all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from broker.groups import (
    GENERATED,
    GENERATING,
    OPEN,
    VERIFIED,
    VERIFYING,
    WAITING,
    GroupRecord,
    IndexRecord,
    Phase,
)


class DeadlineBuckets:
    """Group ids by deadline, first in first out among equals."""

    def __init__(self) -> None:
        self._buckets: dict[int, dict[int, None]] = {}

    def add(self, deadline_step: int, group_id: int) -> None:
        """File ``group_id``; a second time changes nothing."""
        self._buckets.setdefault(deadline_step, {})[group_id] = None

    def discard(self, deadline_step: int, group_id: int) -> None:
        """Take ``group_id`` out if it is there."""
        bucket = self._buckets.get(deadline_step)
        if bucket is not None:
            bucket.pop(group_id, None)
            if not bucket:
                del self._buckets[deadline_step]

    def __iter__(self) -> Iterator[int]:
        for deadline_step in sorted(self._buckets):
            yield from self._buckets[deadline_step]

    def firsts(self, permits: Callable[[int], bool] = lambda _: True) -> Iterator[int]:
        """The first group of each deadline that ``permits`` lets through."""
        for deadline_step in sorted(self._buckets):
            group_id = next(filter(permits, self._buckets[deadline_step]), None)
            if group_id is not None:
                yield group_id

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())


class _Filed(msgspec.Struct, frozen=True, gc=False):
    """How a group is filed, so that only what has changed since is filed anew."""

    deadline_step: int
    is_open: bool
    is_leased: bool
    is_waiting: bool
    is_generated: bool
    is_verified: bool


_COUNT_BITS = 16
_COUNT = (1 << _COUNT_BITS) - 1
_SHIFT = {phase: _COUNT_BITS * place for place, phase in enumerate(Phase)}
_ONE = {phase: 1 << shift for phase, shift in _SHIFT.items()}
_HELD = _COUNT << _SHIFT[GENERATING] | _COUNT << _SHIFT[VERIFYING]

Tally = int
"""How many indices of a group are in each phase, :data:`_COUNT_BITS` each.

One number, because every answer that changes phase looks at it: a large fleet has so many groups
that what lies in several places of memory is in no cache.
"""


@dataclass(slots=True)
class GroupIndex:
    """Live groups by want, counts by deadline, and how many are leased or pending."""

    waiting: DeadlineBuckets = field(default_factory=DeadlineBuckets)
    generated: DeadlineBuckets = field(default_factory=DeadlineBuckets)
    verified: DeadlineBuckets = field(default_factory=DeadlineBuckets)
    num_by_deadline: dict[int, int] = field(default_factory=dict)
    num_leased: int = 0
    num_pending: int = 0
    _filed: dict[int, _Filed] = field(default_factory=dict)
    _tallies: dict[int, Tally] = field(default_factory=dict)

    def move(self, group: GroupRecord, item: IndexRecord, phase: Phase) -> bool:
        """Let an index of a filed group be in ``phase``; returns whether :meth:`file` must follow.

        How a group is filed depends on which phases it has any index in, not on how many.
        """
        former = item.phase
        tally = self._tallies[group.group_id] + _ONE[phase] - _ONE[former]
        self._tallies[group.group_id] = tally
        item.phase = phase
        return not tally >> _SHIFT[former] & _COUNT or tally >> _SHIFT[phase] & _COUNT == 1

    def is_worked_on(self, group_id: int) -> bool:
        """Whether a client holds an index of a filed group."""
        return bool(self._tallies[group_id] & _HELD)

    def file(self, group: GroupRecord) -> None:
        """File ``group`` as it is now; it keeps its turn wherever it was filed before."""
        former = self._filed.get(group.group_id)
        if former is None:
            self._tallies[group.group_id] = _tally(group)
        filed = _filed(group, self._tallies[group.group_id])
        if filed == former:
            return
        self._filed[group.group_id] = filed
        self._refile(group.group_id, former, filed)

    def remove(self, group_id: int) -> None:
        """Take a group out, if it is filed."""
        self._tallies.pop(group_id, None)
        self._refile(group_id, self._filed.pop(group_id, None), None)

    def _refile(self, group_id: int, old: _Filed | None, new: _Filed | None) -> None:
        _move(self.waiting, group_id, _step(old, "is_waiting"), _step(new, "is_waiting"))
        _move(self.generated, group_id, _step(old, "is_generated"), _step(new, "is_generated"))
        _move(self.verified, group_id, _step(old, "is_verified"), _step(new, "is_verified"))
        if old is not None:
            self._count(old, -1)
        if new is not None:
            self._count(new, 1)

    def _count(self, filed: _Filed, change: int) -> None:
        if filed.is_leased:
            self.num_leased += change
        else:
            self.num_pending += change
        if filed.is_open:
            count = self.num_by_deadline.get(filed.deadline_step, 0) + change
            if count:
                self.num_by_deadline[filed.deadline_step] = count
            else:
                self.num_by_deadline.pop(filed.deadline_step, None)


def _tally(group: GroupRecord) -> Tally:
    return sum(_ONE[item.phase] for item in group.indices)


def _filed(group: GroupRecord, tally: Tally) -> _Filed:
    is_open = group.place is OPEN
    return _Filed(
        group.deadline_step,
        is_open,
        not is_open or bool(tally & _HELD),
        is_open and bool(tally & _COUNT << _SHIFT[WAITING]),
        is_open and bool(tally & _COUNT << _SHIFT[GENERATED]),
        is_open and tally == len(group.indices) * _ONE[VERIFIED],
    )


def _step(filed: _Filed | None, want: str) -> int | None:
    """The deadline under which a group is filed for ``want``, if it is."""
    return filed.deadline_step if filed is not None and getattr(filed, want) else None


def _move(buckets: DeadlineBuckets, group_id: int, old: int | None, new: int | None) -> None:
    if old == new:
        return
    if old is not None:
        buckets.discard(old, group_id)
    if new is not None:
        buckets.add(new, group_id)
