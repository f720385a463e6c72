"""The real ledger, rules, leases and engine behind one call an exchange."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TypeVar

from broker import resume_rules, rollout_rules, step_rules, verdict_rules
from broker.engine import Engine
from broker.events import AnyEvent
from broker.leases import LeaseTable
from broker.ledger import Ledger
from broker.ledger_state import LedgerRules
from broker.prompts.mixture import Draw
from broker.prompts.state import PromptsState
from broker.step_rules import Pull
from common.codec import Buffer, pack
from common.messages import (
    CommitStep,
    Lease,
    PromptLease,
    PublishWeights,
    ResumeLearner,
    RolloutLease,
)
from common.types import (
    Prompt,
    RolloutHeader,
    RolloutId,
    Verdict,
    VerdictStatus,
    VerifiedGroup,
    WeightVersion,
)

_T = TypeVar("_T")

_GRADED = Verdict(status=VerdictStatus.GRADED, reward=1.0)
_INFRA = Verdict(status=VerdictStatus.INFRA_ERROR, reward=None, reason="the child died")


class ImbalanceError(AssertionError):
    """A group was lost or counted twice."""


class _CheckedLedger(Ledger):
    """Checks conservation after every event and hashes them all."""

    def __init__(self, rules: LedgerRules) -> None:
        super().__init__(rules)
        self.digest = blake2b(digest_size=16)

    def apply(self, event: AnyEvent) -> None:
        super().apply(event)
        self.digest.update(pack(event))
        leased = sum(group.is_leased for group in self.groups.values())
        counts = self.counts
        if counts.imbalance or (counts.leased, counts.pending) != (
            leased,
            len(self.groups) - leased,
        ):
            raise ImbalanceError(f"{counts} after {event}")


class _NoPayloads:
    """No arrays are simulated."""

    def add_payload(self, header: RolloutHeader, frames: Sequence[Buffer]) -> None:
        """Nothing to keep."""

    def drop_payloads(self, group_ids: Iterable[int]) -> None:
        """Nothing to forget."""

    def payload(self, rollout_id: RolloutId) -> tuple[RolloutHeader, list[memoryview]]:
        """There are none."""
        raise KeyError(rollout_id)


class Core:
    """One broker without sockets, journal and clock."""

    def __init__(self, rules: LedgerRules, *, lease_s: float, checked: bool) -> None:
        self.ledger: Ledger = _CheckedLedger(rules) if checked else Ledger(rules)
        self._engine = Engine(self.ledger, LeaseTable(lease_s), _NoPayloads(), 0.0)

    @property
    def trace_hash(self) -> str:
        """Hash of every event so far; empty unless the ledger is checked."""
        ledger = self.ledger
        return ledger.digest.hexdigest() if isinstance(ledger, _CheckedLedger) else ""

    def lease_prompt(self, owner: str, serving: WeightVersion, now_s: float) -> PromptLease | None:
        """A group for an actor that serves ``serving``."""
        decision = rollout_rules.lease_prompt(self.ledger, owner, serving, _PROMPTS)
        return self._done(self._engine.do(decision, now_s))

    def submit_rollout(self, header: RolloutHeader, now_s: float) -> None:
        """A finished rollout."""
        content = f"{header.rollout_id.attempt}/{header.num_completion_tokens}"
        self._engine.do(rollout_rules.submit_rollout(self.ledger, header, content), now_s)
        self._done(None)

    def renew(self, owner: str, leases: Sequence[Lease], now_s: float) -> None:
        """A heartbeat."""
        self._engine.leases.renew(owner, leases, now_s)

    def expire(self, now_s: float) -> int:
        """Take the work of silent owners back; returns how many leases that were."""
        expired = self._engine.leases.take_expired(now_s)
        for held in expired:
            self._engine.give_back(held, now_s, lost=True)
        return len(self._done(expired))

    def lease_rollout(self, owner: str, now_s: float) -> RolloutLease | None:
        """A rollout for a verifier."""
        if not self.ledger.index.generated:
            return None
        decision = verdict_rules.lease_rollout(self.ledger, owner)
        return self._done(self._engine.do(decision, now_s))

    def submit_verdict(self, lease: RolloutLease, judged: bool, now_s: float) -> None:
        """The end of a verification."""
        verdict = _GRADED if judged else _INFRA
        decision = verdict_rules.submit_verdict(
            self.ledger, lease.rollout.rollout_id, lease.verify_attempt, verdict
        )
        self._engine.do(decision, now_s)
        self._done(None)

    def pull_groups(
        self, policy_step: int, max_groups: int, now_s: float
    ) -> tuple[VerifiedGroup, ...]:
        """Groups for the batch computed at ``policy_step``; no reply is ever lost here."""
        if not self.ledger.index.verified:
            return ()
        decision = step_rules.hand_over(self.ledger, Pull(policy_step, max_groups))
        groups = self._done(self._engine.do(decision, now_s))
        return () if groups is None else groups.groups

    def commit_step(self, commit: CommitStep, now_s: float) -> None:
        """A batch is durable."""
        self._engine.do(step_rules.commit_step(self.ledger, commit), now_s)
        self._done(None)

    def commit_checkpoint(self, policy_step: int, now_s: float) -> None:
        """A checkpoint covers the batches before ``policy_step``."""
        self._engine.do(step_rules.commit_checkpoint(self.ledger, policy_step), now_s)
        self._done(None)

    def announce(self, version: WeightVersion, now_s: float) -> None:
        """Weights are published."""
        message = PublishWeights(version=version, manifest_digest="0")
        self._engine.do(step_rules.announce(self.ledger, message, b""), now_s)
        self._done(None)

    def resume(self, message: ResumeLearner, now_s: float) -> None:
        """A learner starts again."""
        self._engine.do(resume_rules.resume(self.ledger, message), now_s)
        self._done(None)

    def _done(self, outcome: _T) -> _T:
        """Events are not journaled here."""
        self._engine.events.clear()
        return outcome


class EndlessPrompts:
    """A prompt for every draw."""

    def draw(self, state: PromptsState) -> Draw:
        """See :class:`broker.prompts.mixture.PromptSource`."""
        cursor = state.num_drawn
        prompt = Prompt(prompt_id=f"p{cursor}", text="", task="simulated")
        return Draw(prompt, cursor, None, state.mix)


_PROMPTS = EndlessPrompts()
