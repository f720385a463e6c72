"""The ledger: every group of a run from admission to its end, as a fold over events. Pure.

Decisions live in ``broker.rollout_rules`` and ``broker.step_rules``; they read the ledger and
return events. :meth:`Ledger.apply` is the only thing that changes it, so replaying the journal
rebuilds the same state, and ``admitted = trained + evicted + dead_lettered + leased + pending``
holds after every single event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from broker import events
from broker.admission import Window
from broker.dead_letters import describe_error
from broker.events import AnyEvent
from broker.group_index import GroupIndex
from broker.groups import (
    GENERATED,
    GENERATING,
    HANDED_OVER,
    OPEN,
    STEPPED,
    VERIFIED,
    VERIFYING,
    WAITING,
    GroupRecord,
    IndexRecord,
    Phase,
    Place,
)
from broker.ledger_state import LedgerRules, LedgerState
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

    def _on_prompt_set_opened(self, event: events.PromptSetOpened) -> None:
        self.state.prompts.on_set_opened(event)

    def _on_mix_began(self, event: events.MixBegan) -> None:
        self.state.prompts.on_mix_began(event)

    def _on_admitted(self, event: events.Admitted) -> None:
        indices = [IndexRecord() for _ in range(event.size)]
        self.state.groups[event.group_id] = GroupRecord(
            event.group_id, event.prompt, indices, position=event.position
        )
        self.state.prompts.on_admitted(event)
        self.state.next_group_id = event.group_id + 1
        self.index.file(self.groups[event.group_id])

    def _on_leased(self, event: events.Leased) -> None:
        group = self.groups[event.group_id]
        for index in event.indices:
            item = group.indices[index]
            self.index.move(group, item, GENERATING)
            item.owner, item.attempt = event.owner, event.attempt
        group.versions[event.attempt] = event.version
        group.deadline_step = event.deadline_step
        self.state.next_attempt = event.attempt + 1
        self.index.file(group)

    def _on_released(self, event: events.Released) -> None:
        group = self.groups[event.group_id]
        for index in event.indices:
            self._release(group, index, WAITING, event.lost, event.error)
        self.index.file(group)

    def _on_generated(self, event: events.Generated) -> None:
        rollout_id = event.rollout.rollout_id
        group = self.groups[rollout_id.group_id]
        item = group.indices[rollout_id.index]
        is_filed_anew = self.index.move(group, item, GENERATED)
        item.owner, item.attempt = "", rollout_id.attempt
        item.rollout, item.content_hash = event.rollout, event.content_hash
        if is_filed_anew or group.deadline_step != event.deadline_step:
            group.deadline_step = event.deadline_step
            self.index.file(group)

    def _on_verify_leased(self, event: events.VerifyLeased) -> None:
        group = self.groups[event.group_id]
        item = group.indices[event.index]
        is_filed_anew = self.index.move(group, item, VERIFYING)
        item.owner, item.verify_attempt = event.owner, event.attempt
        self.state.next_attempt = event.attempt + 1
        if is_filed_anew:
            self.index.file(group)

    def _on_verify_released(self, event: events.VerifyReleased) -> None:
        group = self.groups[event.group_id]
        item = group.indices[event.index]
        phase = GENERATED if item.verdict is None else self._judged_phase(group, event.index)
        self._release(group, event.index, phase, event.lost, event.error)
        self.index.file(group)

    def _on_verified(self, event: events.Verified) -> None:
        group = self.state.groups[event.group_id]
        item = group.indices[event.index]
        is_filed_anew = self.index.move(group, item, VERIFIED)
        item.owner, item.verify_attempt, item.verdict = "", event.attempt, event.verdict
        if event.reference is not None:
            group.references[event.index] = event.reference
        if is_filed_anew:
            self.index.file(group)

    def _on_reference_wanted(self, event: events.ReferenceWanted) -> None:
        group = self.groups[event.group_id]
        group.references.pop(event.index, None)
        self.index.move(group, group.indices[event.index], GENERATED)
        self.index.file(group)

    def _on_reference_set(self, event: events.ReferenceSet) -> None:
        self.state.reference = event.version
        for group_id in event.group_ids:
            self._settle_references(self.groups[group_id])
            self.index.file(self.groups[group_id])

    def _on_payload_lost(self, event: events.PayloadLost) -> None:
        group = self.groups[event.group_id]
        item = group.indices[event.index]
        self.index.move(group, item, WAITING)
        item.owner = ""
        item.rollout, item.content_hash, item.verdict, item.masked_spans = None, "", None, ()
        group.references.pop(event.index, None)
        item.num_lost += 1
        self.index.file(group)

    def _on_group_judged(self, event: events.GroupJudged) -> None:
        group = self.groups[event.group_id]
        group.is_judged = True
        self.state.prompts.on_judged(group.prompt.prompt_set, group.position, event)

    def _on_handed_over(self, event: events.HandedOver) -> None:
        self.state.handed_over.extend(event.group_ids)
        for group_id in event.group_ids:
            for item in self.groups[group_id].indices:
                item.masked_spans = ()
        for mask in event.masked:
            self.groups[mask.group_id].indices[mask.index].masked_spans = mask.spans
        self._place(event.group_ids, HANDED_OVER)

    def _on_put_back(self, event: events.PutBack) -> None:
        self._forget_consumer(event.group_ids)
        self._place(event.group_ids, OPEN)

    def _on_restamped(self, event: events.Restamped) -> None:
        group = self.groups[event.group_id]
        group.deadline_step = event.deadline_step
        self.index.file(group)

    def _on_stepped(self, event: events.Stepped) -> None:
        self._forget_consumer(event.group_ids)
        self.state.stepped[event.policy_step] = event.group_ids
        self.state.policy_step = event.policy_step + 1
        self.state.prompts.on_stepped(event.policy_step)
        self._place(event.group_ids, STEPPED)

    def _on_trained(self, event: events.Trained) -> None:
        for step in [step for step in self.state.stepped if step < event.policy_step]:
            group_ids = self.state.stepped.pop(step)
            self.state.num_trained += len(group_ids)
            self._drop(group_ids)
        self.state.checkpoint_step = event.policy_step

    def _on_collected(self, event: events.Collected) -> None:
        self._forget_consumer(event.group_ids)
        self.state.num_trained += len(event.group_ids)
        self.state.policy_step += 1
        self._drop(event.group_ids)

    def _on_evicted(self, event: events.Evicted) -> None:
        self._forget_consumer(event.group_ids)
        evicted = self.state.num_evicted
        evicted[event.reason] = evicted.get(event.reason, 0) + len(event.group_ids)
        self._drop(event.group_ids)

    def _on_dead_lettered(self, event: events.DeadLettered) -> None:
        self._forget_consumer((event.group_id,))
        self.state.num_dead_lettered += 1
        self._drop((event.group_id,))

    def _on_announced(self, event: events.Announced) -> None:
        self.state.announcement, self.state.manifest = event.announcement, event.manifest

    def _on_resumed(self, event: events.Resumed) -> None:
        self.state.policy_step = event.policy_step
        self.state.checkpoint_step = event.checkpoint_step
        self.state.sealed = False
        if event.forked:
            timeline = self.state.timeline
            self.state.timeline = timeline.forked(event.incarnation, event.checkpoint_step)

    def _on_sealed(self, event: events.Sealed) -> None:
        self.state.sealed = True

    def _on_collector_started(self, event: events.CollectorStarted) -> None:
        self.state.collector_nonce = event.nonce
        self.state.sealed = False

    def _on_counted(self, event: events.Counted) -> None:
        counters = self.state.counters
        counters[event.what] = counters.get(event.what, 0) + 1

    def _release(
        self, group: GroupRecord, index: int, phase: Phase, lost: bool, error: str
    ) -> None:
        item = group.indices[index]
        if lost or error:
            item.note_failure()
        if error:
            group.errors = (*group.errors, describe_error(index, item.owner, error))
        self.index.move(group, item, phase)
        item.owner = ""
        item.num_lost += lost
        item.num_errors += bool(error)
        self.state.num_redelivered += 1

    def _place(self, group_ids: Iterable[int], place: Place) -> None:
        for group_id in group_ids:
            group = self.groups[group_id]
            group.place = place
            if self.state.reference is not None:
                self._settle_references(group)
            self.index.file(group)

    def _settle_references(self, group: GroupRecord) -> None:
        """Let judged rollouts wait for a verifier exactly while they lack the reference."""
        for index, item in enumerate(group.indices):
            if item.verdict is not None and item.phase is not VERIFYING:
                self.index.move(group, item, self._judged_phase(group, index))

    def _judged_phase(self, group: GroupRecord, index: int) -> Phase:
        """Where a judged rollout stands that no verifier holds."""
        wanted = self.state.reference
        if wanted is None or group.place is not OPEN or group.references.get(index) == wanted:
            return VERIFIED
        return GENERATED

    def _drop(self, group_ids: Iterable[int]) -> None:
        for group_id in group_ids:
            del self.groups[group_id]
            self.index.remove(group_id)

    def _forget_consumer(self, group_ids: Iterable[int]) -> None:
        """Take groups out of the batch being computed and out of the steps they were in."""
        gone = set(group_ids)
        self.state.handed_over = [g for g in self.state.handed_over if g not in gone]
        for step, members in list(self.state.stepped.items()):
            if not gone.isdisjoint(members):
                self.state.stepped[step] = tuple(g for g in members if g not in gone)
                if not self.state.stepped[step]:
                    del self.state.stepped[step]


_APPLY: dict[type[AnyEvent], Callable[[Ledger, Any], None]] = {
    events.PromptSetOpened: Ledger._on_prompt_set_opened,
    events.MixBegan: Ledger._on_mix_began,
    events.Admitted: Ledger._on_admitted,
    events.Leased: Ledger._on_leased,
    events.Released: Ledger._on_released,
    events.Generated: Ledger._on_generated,
    events.VerifyLeased: Ledger._on_verify_leased,
    events.VerifyReleased: Ledger._on_verify_released,
    events.PayloadLost: Ledger._on_payload_lost,
    events.Verified: Ledger._on_verified,
    events.ReferenceWanted: Ledger._on_reference_wanted,
    events.ReferenceSet: Ledger._on_reference_set,
    events.GroupJudged: Ledger._on_group_judged,
    events.HandedOver: Ledger._on_handed_over,
    events.PutBack: Ledger._on_put_back,
    events.Restamped: Ledger._on_restamped,
    events.Stepped: Ledger._on_stepped,
    events.Trained: Ledger._on_trained,
    events.Collected: Ledger._on_collected,
    events.Evicted: Ledger._on_evicted,
    events.DeadLettered: Ledger._on_dead_lettered,
    events.Announced: Ledger._on_announced,
    events.Resumed: Ledger._on_resumed,
    events.Sealed: Ledger._on_sealed,
    events.CollectorStarted: Ledger._on_collector_started,
    events.Counted: Ledger._on_counted,
}
