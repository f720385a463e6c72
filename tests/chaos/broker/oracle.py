"""What clients were told, and whether the broker kept it.

The classes are those of Jepsen's total-queue checker: *lost* (acknowledged and gone), *doubled*
(in two steps), *unexpected* (never sent, or other bytes), and beside them *unstable* (a verdict, a
step or an announcement that was acknowledged and is not what it was), *over age* and *imbalance*.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.messages import Status
from common.types import RolloutId, Verdict, VerifiedGroup

_MAX_TEXT = 400


@dataclass
class History:
    """Everything acknowledged to any client, and everything handed over."""

    rollouts: set[RolloutId] = field(default_factory=set)
    """Acknowledged as accepted."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Answers to rollouts and verdicts, by outcome."""
    submitted: dict[RolloutId, list[Verdict]] = field(default_factory=dict)
    """Verdicts that left a verifier, acknowledged or not."""
    verdicts: dict[RolloutId, list[Verdict]] = field(default_factory=dict)
    """Verdicts acknowledged as accepted."""
    delivered: dict[RolloutId, Verdict] = field(default_factory=dict)
    steps: list[tuple[int, ...]] = field(default_factory=list)
    trained: set[RolloutId] = field(default_factory=set)
    dead: set[int] = field(default_factory=set)
    """Groups that the broker gave up and said so."""
    violations: list[str] = field(default_factory=list)

    def blame(self, kind: str, what: object) -> None:
        """Note one broken promise."""
        self.violations.append(f"{kind}: {what}"[:_MAX_TEXT])

    # --- what clients saw -------------------------------------------------------------------------

    def rollout_answered(self, rollout_id: RolloutId, outcome: str) -> None:
        """An actor was told what became of a rollout."""
        self.outcomes[f"rollout {outcome}"] += 1
        if outcome == "accepted":
            self.rollouts.add(rollout_id)

    def verdict_leaves(self, rollout_id: RolloutId, verdict: Verdict) -> None:
        """A verifier is about to send a verdict."""
        self.submitted.setdefault(rollout_id, []).append(verdict)

    def verdict_answered(self, rollout_id: RolloutId, verdict: Verdict, outcome: str) -> None:
        """A verifier was told what became of a verdict."""
        self.outcomes[f"verdict {outcome}"] += 1
        if outcome == "accepted" and verdict.status.is_judged:
            self.verdicts.setdefault(rollout_id, []).append(verdict)

    def handed_over(self, groups: Sequence[VerifiedGroup], policy_step: int, bound: int) -> None:
        """A batch arrived at the learner."""
        for group in groups:
            lag = policy_step - group.oldest_version.policy_step
            if lag > bound:
                self.blame("over age", f"group {group.group_id} at step {policy_step}: lag {lag}")
            for item in group.rollouts:
                rollout_id = item.rollout.rollout_id
                if self.delivered.setdefault(rollout_id, item.verdict) != item.verdict:
                    self.blame("unstable", f"{rollout_id} was delivered with two verdicts")
                self.trained.add(rollout_id)

    # --- what must hold at the end ----------------------------------------------------------------

    def check(self) -> None:
        """Judge the whole history; every client has said all that it knows."""
        self._check_steps()
        for rollout_id, verdict in self.delivered.items():
            self._check_verdict(rollout_id, verdict)

    def _check_verdict(self, rollout_id: RolloutId, verdict: Verdict) -> None:
        """A reward is one that a verifier gave, and the one that was acknowledged if any was."""
        if verdict not in self.submitted.get(rollout_id, []):
            self.blame("unexpected", f"nobody judged {rollout_id} as {verdict}")
        accepted = self.verdicts.get(rollout_id, [])
        if any(other != verdict for other in accepted):
            self.blame("unstable", f"another verdict of {rollout_id} was acknowledged")

    def _check_steps(self) -> None:
        """No group in two steps, and what was trained is what was acknowledged."""
        times = Counter(group for step in self.steps for group in step)
        for group, count in times.items():
            if count > 1:
                self.blame("doubled", f"group {group} in {count} steps")
        for rollout_id in self.rollouts:
            if rollout_id.group_id in times and rollout_id not in self.trained:
                self.blame("lost", f"{rollout_id} was acknowledged and then sampled again")

    def check_end(self, status: Status) -> None:
        """The books of the broker after the run."""
        counts = status.groups
        if counts.imbalance:
            self.blame("imbalance", counts)
        if counts.trained != sum(len(step) for step in self.steps):
            self.blame("imbalance", f"{counts.trained} trained, {len(self.steps)} steps committed")
        if counts.dead_lettered != len(self.dead):
            self.blame("imbalance", f"{counts.dead_lettered} dead letters, {len(self.dead)} logged")

    def untrained(self) -> dict[int, list[RolloutId]]:
        """Acknowledged rollouts by group, of groups in no step: they must still be there."""
        done = {group for step in self.steps for group in step} | self.dead
        left: dict[int, list[RolloutId]] = {}
        for rollout_id in sorted(self.rollouts):
            if rollout_id.group_id not in done:
                left.setdefault(rollout_id.group_id, []).append(rollout_id)
        return left
