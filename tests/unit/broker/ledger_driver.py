"""Drives the pure ledger in few words; every step checks conservation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from broker import resume_rules, rollout_rules, step_rules, verdict_rules
from broker.engine import Engine
from broker.events import AnyEvent
from broker.leases import LeaseTable
from broker.ledger import Ledger
from broker.ledger_state import Decision, LedgerRules
from broker.prompts.mixture import PromptSource
from broker.step_rules import Pull
from common.codec import Buffer
from common.messages import (
    CommitStep,
    Groups,
    PromptLease,
    PublishWeights,
    ResumeLearner,
    RolloutLease,
    SteppedBatch,
)
from common.types import (
    Prompt,
    RolloutHeader,
    RolloutId,
    Verdict,
    VerdictStatus,
    WeightVersion,
)
from tests.builders import prompt, rollout_header, version
from tests.scripted_prompts import ScriptedPrompts

_T = TypeVar("_T")

GRADED = Verdict(status=VerdictStatus.GRADED, reward=1.0)


class Payloads:
    """Remembers which payloads are kept."""

    def __init__(self) -> None:
        self.kept: set[RolloutId] = set()

    def add_payload(self, header: RolloutHeader, frames: Sequence[Buffer]) -> None:
        self.kept.add(header.rollout_id)

    def drop_payloads(self, group_ids: Iterable[int]) -> None:
        gone = set(group_ids)
        self.kept = {key for key in self.kept if key.group_id not in gone}

    def payload(self, rollout_id: RolloutId) -> tuple[RolloutHeader, list[memoryview]]:
        raise KeyError(rollout_id)


class Driver:
    """A ledger with announced weights and an endless prompt source."""

    def __init__(self, *, announced: bool = True, num_prompts: int = 10_000, **rules: object):
        chosen = {"group_size": 2, "groups_per_step": 2, "max_policy_lag": 1, "num_steps": 100}
        self.rules = LedgerRules(**(chosen | rules))  # type: ignore[arg-type] # test settings
        self.num_prompts = num_prompts
        self.source: PromptSource = ScriptedPrompts(self._prompt_at)
        self.history: list[AnyEvent] = []
        self.payloads = Payloads()
        self.engine = Engine(Ledger(self.rules), LeaseTable(10.0), self.payloads, 0.0)
        if announced and self.rules.kind == "train":
            self.announce(version(0))

    @property
    def ledger(self) -> Ledger:
        return self.engine.ledger

    def do(self, decision: Decision[_T]) -> _T:
        outcome = self.engine.do(decision, 0.0)
        self.history.extend(decision.events)
        assert self.ledger.counts.imbalance == 0
        return outcome

    def announce(self, at: WeightVersion) -> None:
        message = PublishWeights(version=at, manifest_digest="0")
        self.do(step_rules.announce(self.ledger, message, b""))

    def lease(self, at: WeightVersion | None = None, owner: str = "actor-0") -> PromptLease | None:
        serving, newest = at or version(0), self.ledger.newest_version
        if newest is not None and newest < serving:
            self.announce(serving)
        return self.do(rollout_rules.lease_prompt(self.ledger, owner, serving, self.source))

    def leased(self, at: WeightVersion | None = None, owner: str = "actor-0") -> PromptLease:
        lease = self.lease(at, owner)
        assert lease is not None
        return lease

    def num_leasable(self, at: WeightVersion | None = None) -> int:
        """How many groups can be leased until the ledger says no."""
        number = 0
        while self.lease(at) is not None:
            number += 1
        return number

    def submit(
        self,
        lease: PromptLease,
        index: int,
        content: str = "a",
        at: Sequence[WeightVersion] | None = None,
    ) -> str:
        spans = tuple(enumerate(at or (version(0),)))
        header = rollout_header(
            group_id=lease.lease.group_id, index=index, attempt=lease.lease.attempt, spans=spans
        )
        decision = rollout_rules.submit_rollout(self.ledger, header, content)
        if decision.events and decision.outcome == "accepted":
            self.payloads.add_payload(header, ())
        return self.do(decision)

    def lease_rollout(self, owner: str = "verifier-0") -> RolloutLease | None:
        return self.do(verdict_rules.lease_rollout(self.ledger, owner))

    def judge(self, lease: RolloutLease, verdict: Verdict = GRADED) -> str:
        return self.do(
            verdict_rules.submit_verdict(
                self.ledger, lease.rollout.rollout_id, lease.verify_attempt, verdict
            )
        )

    def finish(self, lease: PromptLease, at: Sequence[WeightVersion] | None = None) -> int:
        """Sample and verify all that was leased; returns the group id."""
        for index in lease.lease.indices:
            assert self.submit(lease, index, at=at) == "accepted"
        while (rollout := self.lease_rollout()) is not None:
            assert self.judge(rollout) == "accepted"
        return lease.lease.group_id

    def verified(self, at: WeightVersion | None = None) -> int:
        """A new verified group, sampled under ``at``."""
        sampled = at or version(0)
        return self.finish(self.leased(sampled), (sampled,))

    def pull(
        self, policy_step: int, max_groups: int = 2, held: tuple[int, ...] | None = ()
    ) -> list[int]:
        pull = Pull(policy_step, max_groups, held)
        groups = self.do(step_rules.hand_over(self.ledger, pull))
        return [group.group_id for group in (groups or Groups()).groups]

    def commit(self, policy_step: int, group_ids: Sequence[int], incarnation: int = 0) -> None:
        message = CommitStep(
            incarnation=incarnation, policy_step=policy_step, group_ids=tuple(group_ids)
        )
        self.do(step_rules.commit_step(self.ledger, message))

    def checkpoint(self, policy_step: int) -> None:
        self.do(step_rules.commit_checkpoint(self.ledger, policy_step))

    def step(self, policy_step: int) -> list[int]:
        """Sample, verify, pull and commit one batch under the weights of that step."""
        for _ in range(self.rules.groups_per_step):
            self.verified(version(policy_step))
        group_ids = self.pull(policy_step, self.rules.groups_per_step)
        self.commit(policy_step, group_ids)
        self.announce(version(policy_step + 1))
        return group_ids

    def resume(
        self,
        policy_step: int,
        records: Sequence[Sequence[int]] = (),
        *,
        incarnation: int = 0,
        forked: bool = False,
    ) -> None:
        stepped = tuple(
            SteppedBatch(policy_step=step, group_ids=tuple(group_ids))
            for step, group_ids in enumerate(records, start=policy_step)
        )
        message = ResumeLearner(
            incarnation=incarnation, policy_step=policy_step, stepped=stepped, forked=forked
        )
        self.do(resume_rules.resume(self.ledger, message))

    def _prompt_at(self, cursor: int) -> Prompt | None:
        return prompt(cursor) if cursor < self.num_prompts else None
