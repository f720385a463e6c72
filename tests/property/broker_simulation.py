"""A seeded world around the pure broker: actors, verifiers, a learner, and everything that fails.

The world keeps its own books (which weights descend from which, what was trained) and compares the
broker's against them after every event, so it is an oracle and not a mirror.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from broker import resume_rules, rollout_rules, step_rules, verdict_rules
from broker.engine import Engine
from broker.events import AnyEvent
from broker.leases import LeaseTable
from broker.ledger import Ledger
from broker.ledger_state import LedgerRules, LedgerState
from broker.step_rules import Pull
from common.codec import Buffer
from common.messages import (
    CommitStep,
    Lease,
    PublishWeights,
    ResumeLearner,
    RolloutLease,
    SteppedBatch,
)
from common.types import (
    EvictReason,
    Prompt,
    RolloutHeader,
    RolloutId,
    Verdict,
    VerdictStatus,
    VerifiedGroup,
    WeightVersion,
)
from tests.builders import rollout_header, version

LEASE_S = 15.0
CHECKPOINT_EVERY = 3
GRADED = Verdict(status=VerdictStatus.GRADED, reward=1.0)
INFRA = Verdict(status=VerdictStatus.INFRA_ERROR, reward=None, reason="child died")
BAD_INPUT = Verdict(status=VerdictStatus.BAD_INPUT, reward=None, reason="no gold")


class CheckedLedger(Ledger):
    """A ledger that checks conservation after every single event."""

    def apply(self, event: AnyEvent) -> None:
        super().apply(event)
        assert self.counts.imbalance == 0, event
        leased = sum(group.is_leased for group in self.groups.values())
        assert (self.counts.leased, self.counts.pending) == (leased, len(self.groups) - leased)


class Payloads:
    """Payload headers by id; arrays do not matter here."""

    def __init__(self) -> None:
        self.kept: dict[RolloutId, RolloutHeader] = {}

    def add_payload(self, header: RolloutHeader, frames: Sequence[Buffer]) -> None:
        self.kept[header.rollout_id] = header

    def drop_payloads(self, group_ids: Iterable[int]) -> None:
        gone = set(group_ids)
        self.kept = {key: head for key, head in self.kept.items() if key.group_id not in gone}

    def payload(self, rollout_id: RolloutId) -> tuple[RolloutHeader, list[memoryview]]:
        return self.kept[rollout_id], []


@dataclass
class Job:
    """One completion being sampled."""

    rollout_id: RolloutId
    spans: list[tuple[int, WeightVersion]]


@dataclass
class Actor:
    serving: WeightVersion | None = None
    jobs: list[Job] = field(default_factory=list)


@dataclass
class Learner:
    """The learner's own books; ``trunk[k]`` is the node of the weights of policy_step ``k``."""

    incarnation: int = 0
    policy_step: int = 0
    checkpoint: int = 0
    held: list[VerifiedGroup] = field(default_factory=list)
    records: dict[int, tuple[int, ...]] = field(default_factory=dict)
    trunk: list[int] = field(default_factory=lambda: [0])
    parents: dict[int, int] = field(default_factory=dict)
    nodes: dict[WeightVersion, int] = field(default_factory=lambda: {version(0): 0})
    num_forks: int = 0

    def age(self, at: WeightVersion) -> int:
        """Training batches between ``at`` and the weights now, along the tree."""
        node, distance = self.nodes[at], 0
        while node not in self.trunk:
            node, distance = self.parents[node], distance + 1
        return distance + self.policy_step - self.trunk.index(node)

    def advance(self) -> None:
        node = len(self.parents) + 1
        self.parents[node] = self.trunk[-1]
        self.trunk.append(node)
        self.policy_step += 1
        self.nodes[version(self.policy_step, self.incarnation)] = node

    def fork(self) -> None:
        self.incarnation += 1
        self.num_forks += 1
        self.policy_step = self.checkpoint
        self.trunk = self.trunk[: self.checkpoint + 1]
        self.nodes[version(self.checkpoint, self.incarnation)] = self.trunk[-1]
        self.records = {k: ids for k, ids in self.records.items() if k < self.checkpoint}


@dataclass(frozen=True)
class Faults:
    """Probability of each fault when its turn comes."""

    rate: float = 0.0
    forks: bool = False


class World:
    """One run under simulation."""

    def __init__(self, seed: int, rules: LedgerRules, faults: Faults) -> None:
        self.random = random.Random(seed)
        self.rules = rules
        self.faults = faults
        self.now_s = 0.0
        self.journal: list[AnyEvent] = []
        self.payloads = Payloads()
        self.engine = self._new_engine(CheckedLedger(rules))
        self.actors = {f"actor-{n}": Actor() for n in range(3)}
        self.verifiers: dict[str, list[RolloutLease]] = {"verifier-0": [], "verifier-1": []}
        self.learner = Learner()
        self.submitted: list[tuple[RolloutHeader, str]] = []
        self.granted: set[int] = set()
        self.learner_restarts()

    # --- the outside ------------------------------------------------------------------------------

    @property
    def ledger(self) -> Ledger:
        return self.engine.ledger

    @property
    def is_finished(self) -> bool:
        return self.learner.policy_step >= self.rules.num_steps

    def run(self, max_ticks: int) -> int:
        """Tick until the learner has done all its steps; returns the ticks that took."""
        for tick in range(max_ticks):
            if self.is_finished:
                return tick
            self.tick()
        return max_ticks

    def tick(self) -> None:
        """One random thing happens."""
        self.now_s += self.random.random()
        actions = [
            (8, self.actor_leases),
            (24, self.actor_finishes),
            (6, self.actor_updates),
            (24, self.verifier_works),
            (6, self.learner_pulls),
            (6, self.learner_steps),
            (3, self.learner_publishes),
            (2, self.heartbeats),
        ]
        if self.random.random() < self.faults.rate:
            actions = [
                (2, self.actor_dies),
                (1, self.actor_gives_up),
                (2, self.actor_repeats_itself),
                (1, self.verifier_dies),
                (1, self.learner_evicts),
                (1, self.learner_dies),
                (2, self.broker_restarts),
            ]
        weights = [weight for weight, _ in actions]
        self.random.choices([action for _, action in actions], weights)[0]()
        self.journal.extend(self.engine.events)
        self.engine.events = []

    # --- actors -----------------------------------------------------------------------------------

    def actor_leases(self) -> None:
        name, actor = self._actor()
        if actor.serving is None or len(actor.jobs) > 2 * self.rules.group_size:
            return
        lease = self.engine.do(
            rollout_rules.lease_prompt(self.ledger, name, actor.serving, _prompt_at), self.now_s
        )
        if lease is None:
            return
        attempt = lease.lease.attempt
        assert attempt not in self.granted, "an attempt was granted twice"
        self.granted.add(attempt)
        if self.random.random() < self.faults.rate:
            return  # the reply is lost
        actor.jobs.extend(
            Job(
                RolloutId(group_id=lease.lease.group_id, index=index, attempt=attempt),
                [(0, actor.serving)],
            )
            for index in lease.lease.indices
        )

    def actor_finishes(self) -> None:
        _, actor = self._actor()
        if not actor.jobs:
            return
        job = actor.jobs.pop(self.random.randrange(len(actor.jobs)))
        rollout_id = job.rollout_id
        header = rollout_header(
            group_id=rollout_id.group_id,
            index=rollout_id.index,
            attempt=rollout_id.attempt,
            spans=tuple(job.spans),
        )
        self._submit(header, "a")

    def actor_updates(self) -> None:
        """Load the newest weights in flight: samples go on under them."""
        newest = self.ledger.newest_version
        _, actor = self._actor()
        if newest is None or actor.serving == newest:
            return
        actor.serving = newest
        for job in actor.jobs:
            if self.random.random() < 0.5:
                job.spans.append((len(job.spans), newest))

    def actor_dies(self) -> None:
        name, actor = self._actor()
        actor.jobs.clear()
        actor.serving = None
        if self.random.random() < 0.5:  # it registers again at once
            for held in self.engine.leases.take_owned(name):
                self.engine.give_back(held, self.now_s, lost=True)

    def actor_gives_up(self) -> None:
        name, actor = self._actor()
        if not actor.jobs:
            return
        job = actor.jobs.pop()
        held = self.engine.leases.get(job.rollout_id.attempt)
        if held is not None and held.owner == name:
            error = self.random.choice(["", "engine error"])
            part = msgspec.structs.replace(held.lease, indices=(job.rollout_id.index,))
            decision = rollout_rules.release_prompt(self.ledger, part, error=error)
            self.engine.do(decision, self.now_s)

    def actor_repeats_itself(self) -> None:
        if self.submitted:
            header, content = self.random.choice(self.submitted)
            self._submit(header, self.random.choice([content, content, "b"]))

    def _submit(self, header: RolloutHeader, content: str) -> None:
        decision = rollout_rules.submit_rollout(self.ledger, header, content)
        if decision.events and decision.outcome == "accepted":
            self.payloads.add_payload(header, ())
        self.engine.do(decision, self.now_s)
        self.submitted.append((header, content))
        del self.submitted[:-50]

    # --- verifiers --------------------------------------------------------------------------------

    def verifier_works(self) -> None:
        name = self.random.choice(sorted(self.verifiers))
        leases = self.verifiers[name]
        if leases and self.random.random() < 0.7:
            lease = leases.pop(0)
            verdict = GRADED
            if self.random.random() < self.faults.rate:
                verdict = self.random.choice([INFRA, INFRA, INFRA, BAD_INPUT])
            decision = verdict_rules.submit_verdict(
                self.ledger, lease.rollout.rollout_id, lease.verify_attempt, verdict
            )
            self.engine.do(decision, self.now_s)
            return
        decided = verdict_rules.lease_rollout(self.ledger, name)
        lease_or_none = self.engine.do(decided, self.now_s)
        if lease_or_none is not None:
            assert lease_or_none.rollout.rollout_id in self.payloads.kept
            assert lease_or_none.verify_attempt not in self.granted
            self.granted.add(lease_or_none.verify_attempt)
            leases.append(lease_or_none)

    def verifier_dies(self) -> None:
        self.verifiers[self.random.choice(sorted(self.verifiers))].clear()

    # --- learner ----------------------------------------------------------------------------------

    def learner_pulls(self) -> None:
        learner = self.learner
        lacking = self.rules.groups_per_step - len(learner.held)
        if self.is_finished or lacking == 0:
            return
        held = tuple(group.group_id for group in learner.held)
        pull = Pull(learner.policy_step, self.random.randint(1, lacking), held)
        groups = self.engine.do(step_rules.hand_over(self.ledger, pull), self.now_s)
        if groups is None or self.random.random() < self.faults.rate:
            return  # nothing there, or the reply is lost
        known = set(held)
        assert known.isdisjoint(group.group_id for group in groups.groups)
        learner.held.extend(groups.groups)
        for group in groups.groups:
            assert self._lag(group) <= self.rules.max_policy_lag
            assert len(group.rollouts) == self.rules.group_size

    def learner_evicts(self) -> None:
        if self.learner.held:
            gone = self.learner.held.pop()
            decision = step_rules.evict_groups(
                self.ledger, [gone.group_id], EvictReason.ZERO_ADVANTAGE
            )
            self.engine.do(decision, self.now_s)

    def learner_steps(self) -> None:
        learner = self.learner
        if len(learner.held) < self.rules.groups_per_step:
            return
        group_ids = tuple(group.group_id for group in learner.held)
        earlier = {g for ids in learner.records.values() for g in ids}
        assert earlier.isdisjoint(group_ids), "a group is in two steps of one timeline"
        for group in learner.held:
            assert self._lag(group) <= self.rules.max_policy_lag
        learner.records[learner.policy_step] = group_ids
        if self.random.random() < self.faults.rate:
            self.learner_dies()  # between the durable record and the commit
            return
        self._commit(learner.policy_step, group_ids)
        learner.held = []
        learner.advance()
        if learner.policy_step % CHECKPOINT_EVERY == 0 or self.is_finished:
            learner.checkpoint = learner.policy_step
            decision = step_rules.commit_checkpoint(self.ledger, learner.checkpoint)
            self.engine.do(decision, self.now_s)

    def _commit(self, policy_step: int, group_ids: tuple[int, ...]) -> None:
        commit = CommitStep(
            incarnation=self.learner.incarnation, policy_step=policy_step, group_ids=group_ids
        )
        self.engine.do(step_rules.commit_step(self.ledger, commit), self.now_s)
        again = step_rules.commit_step(self.ledger, commit)
        assert again.events == (), "a repeated commit changed the ledger"

    def learner_publishes(self) -> None:
        learner = self.learner
        newest = version(learner.policy_step, learner.incarnation)
        message = PublishWeights(version=newest, manifest_digest="0")
        self.engine.do(step_rules.announce(self.ledger, message, b""), self.now_s)

    def learner_dies(self) -> None:
        self.learner.held = []
        forks = self.faults.forks and self.random.random() < 0.5
        self.learner_restarts(forked=forks)

    def learner_restarts(self, forked: bool = False) -> None:
        learner = self.learner
        if forked:
            learner.fork()
        replayed = {k: ids for k, ids in learner.records.items() if k >= learner.checkpoint}
        message = ResumeLearner(
            incarnation=learner.incarnation,
            policy_step=learner.checkpoint,
            stepped=tuple(
                SteppedBatch(policy_step=k, group_ids=ids) for k, ids in sorted(replayed.items())
            ),
            forked=forked,
        )
        self.engine.do(resume_rules.resume(self.ledger, message), self.now_s)
        while learner.policy_step < learner.checkpoint + len(replayed):
            learner.advance()  # the step whose record was written but not committed
        assert self.ledger.state.policy_step == learner.policy_step

    def _lag(self, group: VerifiedGroup) -> int:
        return max(
            self.learner.age(span.version)
            for item in group.rollouts
            for span in item.rollout.version_spans
        )

    # --- broker -----------------------------------------------------------------------------------

    def heartbeats(self) -> None:
        """Everybody names what it holds; what nobody names for long goes to others."""
        for name, actor in self.actors.items():
            revoked = self.engine.leases.renew(name, _leases_of(actor.jobs), self.now_s)
            gone = {(lease.attempt, index) for lease in revoked for index in lease.indices}
            actor.jobs = [
                job
                for job in actor.jobs
                if (job.rollout_id.attempt, job.rollout_id.index) not in gone
            ]
        for name, held in self.verifiers.items():
            named = [_verify_lease(lease) for lease in held]
            self.engine.leases.renew(name, named, self.now_s)
        for expired in self.engine.leases.take_expired(self.now_s):
            self.engine.give_back(expired, self.now_s, lost=True)

    def broker_restarts(self) -> None:
        """Replay the journal from a random snapshot point: the same state must come out."""
        self.journal.extend(self.engine.events)
        live = self.ledger.state
        cut = self.random.randint(0, len(self.journal))
        early = Ledger.replay(self.rules, None, self.journal[:cut])
        encoded = msgspec.msgpack.encode(early.state)
        snapshot = msgspec.msgpack.decode(encoded, type=LedgerState)
        replayed = CheckedLedger.replay(self.rules, snapshot, self.journal[cut:])
        assert replayed.state == live
        assert replayed.counts == self.ledger.counts
        assert replayed.index.num_by_deadline == self.ledger.index.num_by_deadline
        self.engine = self._new_engine(replayed)

    def _new_engine(self, ledger: Ledger) -> Engine:
        return Engine(ledger, LeaseTable(LEASE_S), self.payloads, self.now_s)

    def _actor(self) -> tuple[str, Actor]:
        name = self.random.choice(sorted(self.actors))
        return name, self.actors[name]


def _prompt_at(cursor: int) -> Prompt | None:
    return Prompt(prompt_id=f"p{cursor}", text="1+1=", task="arithmetic")


def _leases_of(jobs: Sequence[Job]) -> list[Lease]:
    return [
        Lease(
            group_id=job.rollout_id.group_id,
            indices=(job.rollout_id.index,),
            attempt=job.rollout_id.attempt,
        )
        for job in jobs
    ]


def _verify_lease(lease: RolloutLease) -> Lease:
    rollout_id = lease.rollout.rollout_id
    return Lease(
        group_id=rollout_id.group_id, indices=(rollout_id.index,), attempt=lease.verify_attempt
    )
