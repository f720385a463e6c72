"""The ledger: every group of a run from admission to its end, as a fold over events. Pure.

Decisions live in ``broker.rollout_rules`` and ``broker.step_rules``; they read the ledger and
return events. :meth:`Ledger.apply` is the only thing that changes it, by the functions of
``broker.group_evolution`` and ``broker.run_evolution``, so replaying the journal rebuilds the same
state, and ``admitted = trained + evicted + dead_lettered + leased + pending`` holds after every
single event.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.admission import Window
from broker.events import AnyEvent
from broker.group_evolution import GROUP_EVENTS
from broker.group_index import GroupIndex
from broker.groups import GroupRecord
from broker.ledger_state import LedgerRules, LedgerState
from broker.run_evolution import RUN_EVENTS
from broker.timeline import Timeline
from common.messages import GroupCounts
from common.types import WeightVersion


class Ledger:
    """The state of a run and the indices that make each decision O(max_policy_lag)."""

    def __init__(self, rules: LedgerRules, state: LedgerState | None = None) -> None:
        self.rules = rules
        self.state = state or LedgerState()
        self.index = GroupIndex()
        for group in self.state.groups.values():
            self.index.file(group)

    @classmethod
    def replay(
        cls, rules: LedgerRules, state: LedgerState | None, history: Iterable[AnyEvent]
    ) -> Ledger:
        """The ledger after ``history``, starting from a snapshot."""
        ledger = cls(rules, state)
        for event in history:
            ledger.apply(event)
        return ledger

    # --- reading ----------------------------------------------------------------------------------

    @property
    def groups(self) -> dict[int, GroupRecord]:
        """Live groups by id; a group id below ``next_group_id`` that is not here has ended."""
        return self.state.groups

    @property
    def counts(self) -> GroupCounts:
        """The conservation gauges."""
        return GroupCounts(
            admitted=self.state.next_group_id,
            trained=self.state.num_trained,
            evicted=sum(self.state.num_evicted.values()),
            dead_lettered=self.state.num_dead_lettered,
            leased=self.index.num_leased,
            pending=self.index.num_pending,
        )

    @property
    def is_train(self) -> bool:
        """Whether a learner consumes, with steps and deadlines."""
        return self.rules.kind == "train"

    @property
    def newest_version(self) -> WeightVersion | None:
        """The version last announced."""
        announcement = self.state.announcement
        return None if announcement is None else announcement.version

    @property
    def num_outstanding(self) -> int:
        """Live groups that the consumer does not hold."""
        return sum(self.index.num_by_deadline.values())

    def window(self) -> Window:
        """The inputs of an admission decision, now."""
        return Window(
            self.state.policy_step,
            self.rules.groups_per_step,
            len(self.state.handed_over),
            self.index.num_by_deadline,
            self.rules.staleness,
        )

    def deadline_of(self, version: WeightVersion) -> int:
        """Last policy_step whose batch may hold a token of ``version``.

        Never past the last step of the run, so that nothing is sampled that no batch will take.
        """
        return self.deadline_under(self.state.timeline, version)

    def deadline_under(self, timeline: Timeline, version: WeightVersion) -> int:
        """As :meth:`deadline_of`, were ``timeline`` the current one."""
        if not self.is_train:
            return 0
        oldest = timeline.effective_step(version)
        deadline_step = min(oldest + self.rules.max_policy_lag, self.rules.num_steps - 1)
        # only where a deadline shuts nobody out may one before the run's start stand at its start
        return max(deadline_step, 0) if self.rules.staleness == "mask_tokens" else deadline_step

    # --- evolving ---------------------------------------------------------------------------------

    def apply(self, event: AnyEvent) -> None:
        """Evolve by one event; total over every event that a decision can return."""
        _APPLY[type(event)](self, event)


_APPLY = GROUP_EVENTS | RUN_EVENTS
