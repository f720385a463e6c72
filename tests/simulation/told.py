"""What the clients of a simulated broker sent and were told, and what of it contradicts itself."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from broker.ledger_state import LedgerRules
from common.codec import Buffer
from common.messages import Lease, RolloutLease
from common.types import RolloutHeader, RolloutId, Verdict, VerdictStatus, VerifiedGroup
from tests.builders import rollout_arrays
from tests.simulation.references import ReferenceBooks
from tests.simulation.trace import Violation

_CODES_WITHOUT_PAYLOADS = frozenset({"gone", "not_handed_over"})
_CODES_AFTER_FORGETTING = frozenset({"unknown_lease"})
MAX_CALM_LEASES = 10
"""Deliveries within which a waiting group is served once faults have stopped."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One rollout as an actor sent it; ``variant`` tells two contents under one id apart."""

    header: RolloutHeader
    variant: str

    def frames(self) -> list[bytes]:
        """The arrays that belong to it, and to nothing else."""
        header = self.header
        name = f"{header.rollout_id} {header.actor} {header.generation_s}"
        seed = zlib.crc32(name.encode())
        arrays = rollout_arrays(
            num_prompt=self.header.num_prompt_tokens,
            num_completion=self.header.num_completion_tokens,
            seed=2 * seed + (self.variant == "b"),
        )
        return [bytes(frame) for frame in arrays.frames()]


@dataclass
class Told:
    """What all clients together sent and were told; raises when two of it do not agree."""

    rules: LedgerRules
    is_calm: bool = False
    num_forks: int = 0
    end_was_sent: bool = False
    submitted: dict[RolloutId, list[Submission]] = field(default_factory=dict)
    accepted: dict[int, dict[int, Submission]] = field(default_factory=dict)
    verdicts_sent: dict[RolloutId, list[Verdict]] = field(default_factory=dict)
    verdicts_accepted: dict[RolloutId, Verdict] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)
    collected: set[int] = field(default_factory=set)
    handed_over: set[int] = field(default_factory=set)
    eviction_sent: set[int] = field(default_factory=set)
    eviction_acknowledged: set[int] = field(default_factory=set)
    committed_step: int = 0
    committed_incarnation: int = 0
    tally: Counter[str] = field(default_factory=Counter)
    references: ReferenceBooks = field(default_factory=ReferenceBooks)
    num_forgotten: int = 0
    """Events that a relaxed broker has lost with its machine, as it may."""
    num_payloads_lost: int = 0
    _void: set[RolloutId | tuple[RolloutId, Verdict]] = field(default_factory=set)
    """What was lost as it may be; its acknowledgement may still be under way."""
    _deadlines: dict[int, int] = field(default_factory=dict)
    _attempts: set[int] = field(default_factory=set)
    _void_grants: set[tuple[int, int]] = field(default_factory=set)
    """Attempt and group of leases that were forgotten before anybody was told of them."""
    _errors_sent: Counter[int] = field(default_factory=Counter)
    _errors_accepted: Counter[tuple[int, int]] = field(default_factory=Counter)
    _num_leases: Counter[int] = field(default_factory=Counter)
    _num_calm_leases: Counter[tuple[int, int]] = field(default_factory=Counter)
    _newest_verification: dict[RolloutId, int] = field(default_factory=dict)
    _bad_input_sent: set[int] = field(default_factory=set)
    _two_contents: set[int] = field(default_factory=set)
    _stepped: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def codes_of_loss(self) -> frozenset[str]:
        """Refusals that clients must reckon with once something was lost that may be."""
        codes = _CODES_AFTER_FORGETTING if self.num_forgotten else frozenset()
        return codes | (_CODES_WITHOUT_PAYLOADS if self.num_payloads_lost else frozenset())

    # --- what actors are told ---------------------------------------------------------------------

    def prompt_leased(self, lease: Lease) -> None:
        """An actor received a lease."""
        self._granted(lease.attempt, lease.group_id)
        for index in lease.indices:
            self._served(lease.group_id, index)

    def rollout_sent(self, submission: Submission) -> None:
        """An actor is about to send a rollout."""
        rollout_id = submission.header.rollout_id
        known = self.submitted.setdefault(rollout_id, [])
        if submission not in known:
            known.append(submission)
        contents = {(item.variant, item.header.generation_s) for item in known}
        if len(contents) > 1:
            self._two_contents.add(rollout_id.group_id)

    def rollout_answered(self, submission: Submission, outcome: str) -> None:
        """An actor received the answer to a rollout."""
        rollout_id = submission.header.rollout_id
        group_id = rollout_id.group_id
        self.tally[f"rollout {outcome}"] += 1
        if outcome == "quarantined" and group_id not in self._two_contents:
            raise Violation("G3", f"{rollout_id} was quarantined without cause", group_id)
        if outcome != "accepted" or rollout_id in self._void:
            return
        first = self.accepted.setdefault(group_id, {}).setdefault(rollout_id.index, submission)
        if first != submission:
            raise Violation(
                "G7", f"{submission.header} was accepted after {first.header}", group_id
            )

    def error_sent(self, group_id: int) -> None:
        """A client is about to report an error about a group."""
        self._errors_sent[group_id] += 1

    # --- what verifiers are told ------------------------------------------------------------------

    def rollout_leased(self, lease: RolloutLease) -> None:
        """A verifier received a rollout, or its header."""
        rollout_id = lease.rollout.rollout_id
        self._granted(lease.verify_attempt, rollout_id.group_id)
        newest = self._newest_verification.get(rollout_id, 0)
        self._newest_verification[rollout_id] = max(newest, lease.verify_attempt)
        self._served(rollout_id.group_id, rollout_id.index)
        self._check_rollout(lease.rollout)
        if lease.verdict is not None:
            self._check_verdict(rollout_id, lease.verdict)

    def is_superseded(self, rollout_id: RolloutId, verify_attempt: int) -> bool:
        """Whether a newer lease on the same rollout is known to somebody.

        Attempts that were granted in what a relaxed broker forgot are granted anew: they tell no
        order of leases any more.
        """
        if self.num_forgotten:
            return False
        return self._newest_verification.get(rollout_id, 0) > verify_attempt

    def verdict_sent(self, rollout_id: RolloutId, verdict: Verdict, *, is_own: bool) -> None:
        """A verifier is about to send a verdict: its own, or one that stands."""
        if not is_own:
            self.tally["reference passes alone"] += 1
            return
        self.verdicts_sent.setdefault(rollout_id, []).append(verdict)
        if verdict.status is VerdictStatus.INFRA_ERROR:
            self.error_sent(rollout_id.group_id)
        elif not verdict.status.is_judged:
            self._bad_input_sent.add(rollout_id.group_id)

    def verdict_answered(
        self, rollout_id: RolloutId, verdict: Verdict, outcome: str, *, was_superseded: bool
    ) -> None:
        """A verifier received the answer to a verdict, sent under a lease that was superseded."""
        self.tally[f"verdict {outcome}"] += 1
        if outcome != "accepted":
            return
        if verdict.status is VerdictStatus.INFRA_ERROR:
            if was_superseded:
                text = f"an error under an old lease ended a newer one on {rollout_id}"
                raise Violation("G7", text, rollout_id.group_id)
            self._errors_accepted[rollout_id.group_id, rollout_id.index] += 1
        elif verdict.status.is_judged and not self._void & {rollout_id, (rollout_id, verdict)}:
            first = self.verdicts_accepted.setdefault(rollout_id, verdict)
            if first != verdict:
                raise Violation(
                    "G3", f"{rollout_id} has two verdicts: {first}, {verdict}", rollout_id.group_id
                )

    # --- what the consumer is told ----------------------------------------------------------------

    def group_delivered(self, group: VerifiedGroup) -> None:
        """The consumer received a group."""
        group_id = group.group_id
        if group_id in self.eviction_acknowledged:
            raise Violation("G3", f"group {group_id} was evicted and came again", group_id)
        indices = [item.rollout.rollout_id.index for item in group.rollouts]
        if indices != list(range(self.rules.group_size)):
            raise Violation("G1", f"group {group_id} came with indices {indices}", group_id)
        for item in group.rollouts:
            self._check_rollout(item.rollout)
            self._check_verdict(item.rollout.rollout_id, item.verdict)
        rewards = {item.verdict.reward for item in group.rollouts}
        if self.rules.dynamic_sampling and len(rewards) == 1:
            raise Violation("dynamic sampling", f"group {group_id} teaches nothing", group_id)

    def step_committed(self, incarnation: int, policy_step: int) -> None:
        """The learner was told that all batches before ``policy_step`` are stepped."""
        self.committed_incarnation, self.committed_step = incarnation, policy_step

    def saw_lag(self, lag: int) -> None:
        """The consumer received tokens of this age."""
        self.tally[f"lag {lag}"] += 1

    def check_content(self, header: RolloutHeader, frames: Sequence[Buffer]) -> None:
        """Arrays that a client received are those that were sent under this header."""
        self._check_rollout(header)
        got = [bytes(frame) for frame in frames]
        rollout_id = header.rollout_id
        accepted = self.accepted.get(rollout_id.group_id, {}).get(rollout_id.index)
        allowed = [accepted] if accepted else self.submitted[rollout_id]
        if not any(item.frames() == got for item in allowed):
            raise Violation(
                "G1", f"{rollout_id} came with other arrays than were sent", rollout_id.group_id
            )

    def _check_rollout(self, header: RolloutHeader) -> None:
        rollout_id = header.rollout_id
        group_id = rollout_id.group_id
        if all(item.header != header for item in self.submitted.get(rollout_id, ())):
            raise Violation("unexpected", f"nobody submitted {header}", group_id)
        accepted = self.accepted.get(group_id, {}).get(rollout_id.index)
        if accepted is None:
            self.tally["recovered"] += 1
        elif accepted.header != header:
            raise Violation("lost", f"{accepted.header} was acknowledged, {header} came", group_id)

    def _check_verdict(self, rollout_id: RolloutId, verdict: Verdict) -> None:
        group_id = rollout_id.group_id
        if not verdict.status.is_judged:
            raise Violation("G9", f"{rollout_id} came with {verdict}", group_id)
        if verdict not in self.verdicts_sent.get(rollout_id, ()):
            raise Violation("unexpected", f"nobody judged {rollout_id} as {verdict}", group_id)
        accepted = self.verdicts_accepted.get(rollout_id, verdict)
        if accepted != verdict:
            raise Violation("lost", f"{accepted} was acknowledged, {verdict} came", group_id)

    # --- leases -----------------------------------------------------------------------------------

    def _granted(self, attempt: int, group_id: int) -> None:
        self._num_leases[group_id] += 1
        if (attempt, group_id) in self._void_grants:
            self._void_grants.remove((attempt, group_id))  # its reply outlived the machine
            return
        if attempt in self._attempts:
            raise Violation("G7", f"attempt {attempt} was granted twice", group_id)
        self._attempts.add(attempt)

    def _served(self, group_id: int, index: int) -> None:
        if self._errors_accepted[group_id, index] >= self.rules.max_attempts:
            raise Violation("G8", f"index {index} came again after its last error", group_id)
        if self.is_calm:
            self._num_calm_leases[group_id, index] += 1
            if self._num_calm_leases[group_id, index] > 2 * MAX_CALM_LEASES:
                raise Violation("G10", f"index {index} is leased again and again", group_id)
