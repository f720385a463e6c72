"""A run in virtual time around the pure ledger: heavy-tailed answers, late weights, every failure.

The world keeps its own account of which weights are how old, so that it can contradict the ledger.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from broker import resume_rules, rollout_rules, step_rules, verdict_rules
from broker.engine import Engine
from broker.events import Admitted, AnyEvent, Evicted
from broker.leases import LeaseTable
from broker.ledger import Ledger
from broker.ledger_state import Decision, LedgerRules
from broker.step_rules import Pull
from common.messages import (
    CommitStep,
    Groups,
    Lease,
    PromptLease,
    PublishWeights,
    ResumeLearner,
    SteppedBatch,
)
from common.types import EvictReason, Verdict, VerdictStatus, VerifiedGroup, WeightVersion
from tests.builders import prompt, rollout_header, version
from tests.scripted_prompts import ScriptedPrompts
from tests.unit.broker.ledger_driver import GRADED, Payloads

INFRA = Verdict(status=VerdictStatus.INFRA_ERROR, reward=None, reason="child died")
STEP_S = 1.0
_T = TypeVar("_T")


@dataclass
class Actor:
    """One that loads new weights a while after they are announced."""

    name: str
    serving: WeightVersion
    room: int = 3


@dataclass
class HeavyTailedRun:
    """Runs until all steps are taken; every check is made on the way."""

    rules: LedgerRules
    seed: int
    tail: str = "pareto"
    fault_rate: float = 0.0
    forks: bool = False
    publish_s: float = 0.2
    max_events: int = 60_000
    num_actors: int = 3
    evicted: dict[EvictReason, int] = field(default_factory=dict)
    largest_lag: int = 0
    num_masked_tokens: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.now_s = 0.0
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.engine = Engine(Ledger(self.rules), LeaseTable(1e9), Payloads(), 0.0)
        self.source = ScriptedPrompts(prompt)
        self.policy_step = self.checkpoint_step = self.incarnation = 0
        self.forked_at: dict[int, int] = {}
        self.held: list[VerifiedGroup] = []
        self.records: dict[int, tuple[int, ...]] = {}
        self.actors = [Actor(f"actor-{n}", version(0)) for n in range(self.num_actors)]
        self.epoch = 0
        self._announce(version(0))

    @property
    def ledger(self) -> Ledger:
        """The ledger under test."""
        return self.engine.ledger

    def run(self) -> None:
        """Until the last step; fails when nothing is left to happen before that."""
        self._ask_for_work()
        for _ in range(self.max_events):
            if self.policy_step == self.rules.num_steps:
                return
            assert self.agenda, f"deadlock: {self.ledger.counts}, step {self.policy_step}"
            self.now_s, _, happen = heapq.heappop(self.agenda)
            happen()
            self._ask_for_work()
            self._learn()
        raise AssertionError("no end in sight")

    def age(self, at: WeightVersion) -> int:
        """Batches between ``at`` and the step being computed, through the forks after it."""
        cuts = [c for number, c in self.forked_at.items() if number > at.incarnation]
        shared = min([at.policy_step, *cuts])
        return (self.policy_step - shared) + (at.policy_step - shared)

    # --- actors and verifiers ---------------------------------------------------------------------

    def _ask_for_work(self) -> None:
        for actor in self.actors:
            while actor.room > 0:
                decision = rollout_rules.lease_prompt(
                    self.ledger, actor.name, actor.serving, self.source
                )
                self._check_count(decision.events)
                lease = self._do(decision)
                if lease is None:
                    break
                actor.room -= 1
                self._sample(actor, lease)

    def _check_count(self, decided: tuple[AnyEvent, ...]) -> None:
        if any(isinstance(event, Admitted) for event in decided):
            present = self.ledger.num_outstanding + len(self.ledger.state.handed_over)
            bound = (self.rules.max_policy_lag + 1) * self.rules.groups_per_step
            assert present < bound, "an admission went beyond (eta + 1) P"

    def _sample(self, actor: Actor, lease: PromptLease) -> None:
        ends_s = [self.now_s + self._length() for _ in lease.lease.indices]
        started = actor.serving
        for index, end_s in zip(lease.lease.indices, ends_s, strict=True):
            self._later(end_s, self._result(actor, lease.lease, index, started))
        self._later(max(ends_s), lambda: setattr(actor, "room", actor.room + 1))

    def _length(self) -> float:
        if self.tail == "pareto":
            return 0.3 * self.random.paretovariate(1.3)
        return self.random.lognormvariate(-0.7, 1.2)

    def _result(
        self, actor: Actor, lease: Lease, index: int, started: WeightVersion
    ) -> Callable[[], None]:
        def happen() -> None:
            if self._fails():
                error = self.random.choice(["", "engine error", "engine error"])
                part = Lease(group_id=lease.group_id, indices=(index,), attempt=lease.attempt)
                self._do(rollout_rules.release_prompt(self.ledger, part, lost=True, error=error))
                if self.random.random() < 0.7:
                    return  # otherwise the lost result comes late after all
            spans = [started] if actor.serving == started else [started, actor.serving]
            header = rollout_header(
                group_id=lease.group_id,
                index=index,
                attempt=lease.attempt,
                spans=tuple(enumerate(spans)),
            )
            self._do(rollout_rules.submit_rollout(self.ledger, header, "a"))
            self._verify()

        return happen

    def _verify(self) -> None:
        while (lease := self._do(verdict_rules.lease_rollout(self.ledger, "verifier"))) is not None:
            verdict = INFRA if self._fails() else GRADED
            decision = verdict_rules.submit_verdict(
                self.ledger, lease.rollout.rollout_id, lease.verify_attempt, verdict
            )
            self._do(decision)

    # --- the learner ------------------------------------------------------------------------------

    def _learn(self) -> None:
        held = tuple(group.group_id for group in self.held)
        lacking = self.rules.groups_per_step - len(held)
        if lacking == 0:
            return
        pull = Pull(self.policy_step, lacking, held)
        groups = self._do(step_rules.hand_over(self.ledger, pull)) or Groups()
        for group in groups.groups:
            self._check_lag(group)
        self.held += groups.groups
        if len(self.held) == self.rules.groups_per_step:
            epoch = self.epoch
            self._later(self.now_s + STEP_S, lambda: self._step(epoch))

    def _check_lag(self, group: VerifiedGroup) -> None:
        for item in group.rollouts:
            ages = [self.age(item.rollout.version_spans[n].version) for n in item.trained_spans]
            self.largest_lag = max([self.largest_lag, *ages])
            masked = item.rollout.num_tokens_in(item.masked_spans)
            self.num_masked_tokens += masked
        assert self.largest_lag <= self.rules.max_policy_lag

    def _step(self, epoch: int) -> None:
        if epoch != self.epoch:
            return  # the learner died in between
        group_ids = tuple(group.group_id for group in self.held)
        self.records[self.policy_step] = group_ids
        if self._fails():
            self._restart()
            return
        message = CommitStep(
            incarnation=self.incarnation, policy_step=self.policy_step, group_ids=group_ids
        )
        self._do(step_rules.commit_step(self.ledger, message))
        self._advance()

    def _advance(self) -> None:
        self.held = []
        self.epoch += 1
        self.policy_step += 1
        if self.policy_step % 3 == 0:
            self.checkpoint_step = self.policy_step
            self._do(step_rules.commit_checkpoint(self.ledger, self.policy_step))
        self._publish()

    def _restart(self) -> None:
        forked = self.forks and self.random.random() < 0.5
        if forked:
            self.incarnation += 1
            self.forked_at[self.incarnation] = self.checkpoint_step
            self.records = {}
        records = {k: ids for k, ids in self.records.items() if k >= self.checkpoint_step}
        message = ResumeLearner(
            incarnation=self.incarnation,
            policy_step=self.checkpoint_step,
            stepped=tuple(
                SteppedBatch(policy_step=k, group_ids=ids) for k, ids in sorted(records.items())
            ),
            forked=forked,
        )
        self._do(resume_rules.resume(self.ledger, message), may_go_stale=forked)
        self.held = []
        self.epoch += 1
        self.policy_step = self.checkpoint_step + len(records)
        self._publish()

    def _publish(self) -> None:
        delay_s = self.publish_s * self.random.paretovariate(1.2)
        at = version(self.policy_step, self.incarnation)
        self._later(self.now_s + delay_s, lambda: self._announce(at))

    def _announce(self, at: WeightVersion) -> None:
        newest = self.ledger.newest_version
        if at.incarnation != self.incarnation or (newest is not None and at < newest):
            return  # overtaken by a newer publish
        message = PublishWeights(version=at, manifest_digest="0")
        self._do(step_rules.announce(self.ledger, message, b""))
        for actor in self.actors:
            loaded_s = self.now_s + self.publish_s * self.random.random()
            self._later(loaded_s, self._load(actor, at))

    def _load(self, actor: Actor, at: WeightVersion) -> Callable[[], None]:
        def happen() -> None:
            actor.serving = max(actor.serving, at)

        return happen

    # --- machinery --------------------------------------------------------------------------------

    def _do(self, decision: Decision[_T], *, may_go_stale: bool = False) -> _T:
        for event in decision.events:
            if isinstance(event, Evicted):
                self.evicted[event.reason] = self.evicted.get(event.reason, 0) + len(
                    event.group_ids
                )
                waits = self.rules.staleness == "wait"
                assert may_go_stale or not waits, "evicted while waiting"
        outcome = self.engine.do(decision, self.now_s)
        self.engine.events = []
        assert self.ledger.counts.imbalance == 0
        if self.rules.staleness == "wait":
            assert self.ledger.window().holds()
        return outcome

    def _fails(self) -> bool:
        return self.random.random() < self.fault_rate

    def _later(self, at_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self.agenda, (at_s, next(self.numbers), happen))
