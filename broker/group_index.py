"""Which groups want what, earliest deadline first, without looking at all groups.

Each live group is filed under what it can give: indices that wait for an actor, rollouts that wait
for a verifier, a whole group that waits for the consumer. Filing again after an event is O(1) in
the number of groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from broker.groups import GroupRecord, Phase, Place


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

    def firsts(self) -> Iterator[int]:
        """The first group of each deadline."""
        for deadline_step in sorted(self._buckets):
            yield next(iter(self._buckets[deadline_step]))

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())


@dataclass(frozen=True, slots=True)
class _Filed:
    """Where a group is filed now, so that it can be taken out after it has changed."""

    deadline_step: int
    is_open: bool
    is_leased: bool


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

    def file(self, group: GroupRecord) -> None:
        """File ``group`` as it is now, in place of how it was filed before."""
        self.remove(group.group_id)
        is_open = group.place is Place.OPEN
        filed = _Filed(group.deadline_step, is_open, group.is_leased)
        self._filed[group.group_id] = filed
        self._count(filed, 1)
        if is_open:
            self._add_wants(group)

    def remove(self, group_id: int) -> None:
        """Take a group out, if it is filed."""
        filed = self._filed.pop(group_id, None)
        if filed is None:
            return
        self._count(filed, -1)
        for buckets in (self.waiting, self.generated, self.verified):
            buckets.discard(filed.deadline_step, group_id)

    def _add_wants(self, group: GroupRecord) -> None:
        phases = {item.phase for item in group.indices}
        if Phase.WAITING in phases:
            self.waiting.add(group.deadline_step, group.group_id)
        if Phase.GENERATED in phases:
            self.generated.add(group.deadline_step, group.group_id)
        if phases == {Phase.VERIFIED}:
            self.verified.add(group.deadline_step, group.group_id)

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
