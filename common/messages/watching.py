"""The state of a run, for people and supervisors."""

from __future__ import annotations

from common.messages.base import Message
from common.types import Count, Name, Record, WeightVersion


class GetStatus(Message, frozen=True):
    """Ask for the state of the run."""


class GroupCounts(Record, frozen=True):
    """Gauges over all groups; ``admitted`` equals the sum of the other five after every event."""

    admitted: Count = 0
    trained: Count = 0
    evicted: Count = 0
    dead_lettered: Count = 0
    leased: Count = 0
    pending: Count = 0

    @property
    def imbalance(self) -> int:
        """Zero, or a group was lost or counted twice."""
        accounted = self.trained + self.evicted + self.dead_lettered + self.leased + self.pending
        return self.admitted - accounted


class NamedCount(Record, frozen=True):
    """A count under a fixed name (an evict reason, a role that is waited for)."""

    name: Name
    count: Count


class Status(Message, frozen=True):
    """Reply to :class:`GetStatus`."""

    run_id: Name
    groups: GroupCounts
    evicted: tuple[NamedCount, ...]
    policy_step: Count
    incarnation: Count
    newest_version: WeightVersion | None
    waiting: tuple[NamedCount, ...]
    sealed: bool = False
    weight_syncs: Count = 0
    weight_proofs_failed: Count = 0
    duplicates: Count = 0
    redelivered: Count = 0
