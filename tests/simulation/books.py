"""What the clients of a simulated broker were told, and whether it has kept its word.

The oracle. Nothing here is read from the ledger unless it is compared with what a client was told:
acknowledged rollouts and verdicts, granted attempts, commits, evictions. The promises are those of
``docs/broker.md``, by their names there (G1 no acknowledged loss ... G10 liveness), and the classes
are those of Jepsen's total-queue checker: *lost* (acknowledged, gone), *unexpected* (delivered,
never submitted), *duplicated* (in two surviving steps), *recovered* (never acknowledged, yet kept).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from broker import events
from broker.events import AnyEvent
from broker.groups import Place
from broker.ledger import Ledger
from common.codec import Buffer
from common.payloads.backing import Backing
from common.types import EvictReason, RolloutHeader, RolloutId
from tests.simulation.references import ReferenceKeeper
from tests.simulation.told import Told
from tests.simulation.trace import Violation


class RecoveredJournal(ReferenceKeeper, Protocol):
    """What is asked of a journal that came back."""

    def payload(self, rollout_id: RolloutId) -> tuple[RolloutHeader, Sequence[Buffer]]:
        """Header and frames of one rollout."""
        ...


@dataclass
class Books(Told):
    """The books of all clients together, compared with the log and with what survives."""

    # --- what the log says ------------------------------------------------------------------------

    def event_happened(self, ledger: Ledger, event: AnyEvent) -> None:
        """The ledger decided; an end must have a cause that some client knows of."""
        if isinstance(event, events.Leased | events.Restamped):
            self._deadlines[event.group_id] = ledger.groups[event.group_id].deadline_step
        elif isinstance(event, events.Generated):
            self._deadlines[event.rollout.rollout_id.group_id] = event.deadline_step
        elif isinstance(event, events.VerifyLeased):
            self._check_judged_once(ledger, event)
        elif isinstance(event, events.PayloadLost):
            self._payload_lost(event)
        elif isinstance(event, events.HandedOver):
            self.handed_over.update(event.group_ids)
        elif isinstance(event, events.Stepped):
            self._stepped[event.policy_step] = event.group_ids
        elif isinstance(event, events.Resumed):
            kept = {s: ids for s, ids in self._stepped.items() if s < event.checkpoint_step}
            self._stepped = kept
            self._check_put_back(ledger)
        else:
            self._groups_ended(ledger, event)

    def _groups_ended(self, ledger: Ledger, event: AnyEvent) -> None:
        """The same for the events that end groups."""
        if isinstance(event, events.Trained):
            for step in [step for step in self._stepped if step < event.policy_step]:
                self._end(self._stepped.pop(step), "trained")
        elif isinstance(event, events.Collected):
            self._end(event.group_ids, "trained")
        elif isinstance(event, events.Evicted):
            for group_id in event.group_ids:
                self._check_eviction(ledger, group_id, event.reason)
            self._end(event.group_ids, event.reason.value)
        elif isinstance(event, events.DeadLettered):
            self._check_dead_letter(event.group_id)
            self._end([event.group_id], "dead_lettered")

    def _check_judged_once(self, ledger: Ledger, event: events.VerifyLeased) -> None:
        """A rollout whose verdict was acknowledged is leased with it, for its reference alone."""
        item = ledger.groups[event.group_id].indices[event.index]
        assert item.rollout is not None
        told = self.verdicts_accepted.get(item.rollout.rollout_id)
        if told is not None and item.verdict != told:
            text = f"{item.rollout.rollout_id} is judged again, it has {told}"
            raise Violation("G3", text, event.group_id)

    def _payload_lost(self, event: events.PayloadLost) -> None:
        """Only arrays in an actor's memory may be lost; the answer is then as if never given."""
        self.num_payloads_lost += 1
        self.tally["payloads lost"] += 1
        self._void.add(RolloutId(event.group_id, event.index, event.attempt))
        submission = self.accepted.get(event.group_id, {}).get(event.index)
        if submission is None or submission.header.rollout_id.attempt != event.attempt:
            return
        if not (submission.header.store == submission.header.actor or self.num_forgotten):
            raise Violation("lost", f"the arrays of {submission.header}", event.group_id)
        self._withdraw(event.group_id, event.index)

    def _withdraw(self, group_id: int, index: int) -> None:
        """What was said about an answer is void."""
        known = self.accepted.get(group_id, {})
        submission = known.pop(index, None)
        if not known:
            self.accepted.pop(group_id, None)
        if submission is not None:
            self.verdicts_accepted.pop(submission.header.rollout_id, None)
        self.references.forget(group_id)

    def _check_put_back(self, ledger: Ledger) -> None:
        """A learner starts anew: nothing may stay with the one before."""
        kept = {group_id for group_ids in self._stepped.values() for group_id in group_ids}
        for group in ledger.groups.values():
            if group.place is not Place.OPEN and group.group_id not in kept:
                text = f"group {group.group_id} stays with a learner that is gone"
                raise Violation("G10", text, group.group_id)

    def _end(self, group_ids: Iterable[int], how: str) -> None:
        for group_id in group_ids:
            if group_id in self.ended:
                raise Violation(
                    "G3", f"group {group_id} ended as {self.ended[group_id]} and {how}", group_id
                )
            self.ended[group_id] = how
            self.tally[f"group {how}"] += 1

    def _check_eviction(self, ledger: Ledger, group_id: int, reason: EvictReason) -> None:
        is_overdue = self._deadlines.get(group_id, 0) < ledger.state.policy_step
        causes = {
            EvictReason.STALE: self.num_forks > 0
            or (self.rules.staleness == "drop_group" and is_overdue),
            EvictReason.ALL_MASKED: self._is_all_too_old(ledger, group_id),
            EvictReason.QUARANTINED: group_id in self._two_contents,
            EvictReason.ZERO_ADVANTAGE: self.rules.dynamic_sampling
            or group_id in self.eviction_sent,
            EvictReason.RUN_END: self.end_was_sent,
        }
        if not causes.get(reason, False):
            raise Violation("G1", f"group {group_id} was evicted as {reason} without cause")

    def _is_all_too_old(self, ledger: Ledger, group_id: int) -> bool:
        """Whether no token of a group may be trained any more."""
        if self.rules.staleness != "mask_tokens":
            return False
        oldest = ledger.state.policy_step - self.rules.max_policy_lag
        steps = [
            ledger.state.timeline.effective_step(span.version)
            for submission in self.accepted.get(group_id, {}).values()
            for span in submission.header.version_spans
            if span.start < submission.header.num_completion_tokens
        ]
        return max(steps, default=-1) < oldest

    def _check_dead_letter(self, group_id: int) -> None:
        if group_id in self._bad_input_sent:
            return
        weight = 4 * self._errors_sent[group_id] + self._num_leases[group_id]
        if weight < self.rules.max_attempts:
            raise Violation("G8", f"group {group_id} was dead-lettered without cause", group_id)

    # --- after a restart of the broker ------------------------------------------------------------

    def forget(self, lost: Sequence[AnyEvent]) -> None:
        """A relaxed broker lost these with its machine: what was said about answers is void.

        What the consumer was told is not: the journal syncs that in any case.
        """
        self.num_forgotten += len(lost)
        self.tally["events forgotten"] += len(lost)
        for event in lost:
            if isinstance(event, events.Generated):
                rollout_id = event.rollout.rollout_id
                self._void.add(rollout_id)
                self._withdraw(rollout_id.group_id, rollout_id.index)
            elif isinstance(event, events.Verified):
                self._forget_verdict(event)
            elif isinstance(event, events.VerifyReleased):
                self._errors_accepted[event.group_id, event.index] = 0
            elif isinstance(event, events.Leased | events.VerifyLeased):
                self._forget_grant(event.attempt, event.group_id)
        if lost:
            self._newest_verification.clear()
            self.references.epoch += 1

    def _forget_grant(self, attempt: int, group_id: int) -> None:
        """The number may be granted anew; who is told of the first grant by then is not known."""
        if attempt in self._attempts:
            self._attempts.remove(attempt)
        else:
            self._void_grants.add((attempt, group_id))

    def _forget_verdict(self, event: events.Verified) -> None:
        for rollout_id in list(self.verdicts_sent):
            if (rollout_id.group_id, rollout_id.index) == (event.group_id, event.index):
                self._void.add((rollout_id, event.verdict))
                self.verdicts_accepted.pop(rollout_id, None)
        self.references.forget(event.group_id)

    def check_store(self, name: str, payloads: Backing) -> None:
        """A payload store came back: all that was acknowledged must be there until it has ended."""
        for group_id, by_index in self.accepted.items():
            for submission in by_index.values():
                header = submission.header
                if group_id in self.ended or header.store != name:
                    continue
                try:
                    _, frames = payloads.payload(header.rollout_id)
                except KeyError:
                    raise Violation("lost", f"the arrays of {header}", group_id) from None
                self.check_content(header, frames)

    def check_recovered(self, ledger: Ledger, payloads: RecoveredJournal) -> None:
        """A broker came back: all that was acknowledged must be there, or have ended by its log."""
        for group_id in [group for group in self.ended if group in ledger.groups]:
            del self.ended[group_id]  # the end was never durable, so nobody may have been told
            if group_id in self.eviction_acknowledged:
                raise Violation("G1", f"the eviction of group {group_id} was undone", group_id)
        self._stepped = dict(ledger.state.stepped)
        for group_id, by_index in self.accepted.items():
            if group_id in self.ended:
                continue
            group = ledger.groups.get(group_id)
            if group is None:
                raise Violation("lost", f"group {group_id} is gone without a record", group_id)
            for index, submission in by_index.items():
                item = group.indices[index]
                if item.rollout != submission.header:
                    raise Violation("lost", f"{submission.header} was acknowledged", group_id)
                header = submission.header
                if not header.store:
                    self.check_content(*payloads.payload(header.rollout_id))
                verdict = self.verdicts_accepted.get(header.rollout_id)
                if verdict is not None and item.verdict != verdict:
                    raise Violation("lost", f"{verdict} on {header.rollout_id}", group_id)
        self.references.check_recovered(ledger, payloads)
        self._check_committed(ledger)

    def _check_committed(self, ledger: Ledger) -> None:
        incarnation = ledger.state.timeline.incarnation
        here = (incarnation, ledger.state.policy_step)
        told = (self.committed_incarnation, self.committed_step)
        if self.rules.kind == "train" and here < told:
            raise Violation("G1", f"step {told} was acknowledged, the broker is at {here}")

    def check_end(self, ledger: Ledger, kept: Collection[int]) -> None:
        """The run has ended: every acknowledged rollout has an end in the log, and no arrays."""
        for group_id in self.accepted:
            if group_id not in self.ended:
                raise Violation("lost", f"group {group_id} never ended", group_id)
        if ledger.groups:
            raise Violation("G2", f"groups {sorted(ledger.groups)} outlive the run")
        if kept:
            raise Violation("G2", f"arrays outlive their groups: {sorted(kept)}")
