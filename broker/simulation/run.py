"""One simulated run: actors, verifiers and a learner around the real broker core."""

from __future__ import annotations

import random
from dataclasses import dataclass

from broker.ledger_state import LedgerRules
from broker.simulation.actor import Job, VirtualActor
from broker.simulation.agenda import Agenda
from broker.simulation.core import Core
from broker.simulation.lag_book import LagBook
from broker.simulation.learner import Step, VirtualLearner
from broker.simulation.lengths import Workload
from broker.simulation.setting import Setting
from common.errors import FatalError
from common.messages import GroupCounts, RolloutLease
from common.types import WeightVersion

_OUT_OF_THE_WAY = 1 << 20
"""A bound on lag that never binds, for runs that are gated by count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to."""

    steps: tuple[Step, ...]
    lags: LagBook
    leased_at_s: tuple[float, ...]
    """When each lease of a group was granted."""
    group_seconds: tuple[float, ...]
    """At each commit: groups that the broker held open or handed over, integrated over time."""
    counts: GroupCounts
    num_deaths: int
    num_forks: int
    trace_hash: str

    @property
    def end_s(self) -> float:
        """Time of the last commit."""
        return self.steps[-1].at_s

    @property
    def utilisation(self) -> float:
        """The learner's busy share of the whole run: ideal time over measured time.

        The fleet samples exactly as fast as the learner trains, so the bubble-free time of the run
        is the learner's busy time.
        """
        return sum(step.busy_s for step in self.steps) / self.end_s

    def steady_utilisation(self, cut: float = 0.25) -> float:
        """The busy share without the first and the last ``cut`` of the steps."""
        first, last = self.steady_window(cut)
        busy_s = sum(step.busy_s for step in self.steps[first + 1 : last + 1])
        return busy_s / (self.steps[last].at_s - self.steps[first].at_s)

    def steady_window(self, cut: float = 0.25) -> tuple[int, int]:
        """First and last commit of what is neither start nor end of the run."""
        num_cut = int(len(self.steps) * cut)
        return num_cut, len(self.steps) - 1 - num_cut


class Simulation:
    """A run in virtual time. The same setting gives the same run, event by event."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.agenda = Agenda()
        self.workload = Workload(setting.lengths, setting.group_size, setting.seed)
        self.core = Core(_rules(setting), lease_s=setting.faults.lease_s, checked=setting.checked)
        self.learner = VirtualLearner(
            setting, self.core, self.agenda, self.workload, self._on_published
        )
        self._actors = [
            VirtualActor(f"actor-{n}", setting.slots_per_actor, setting.latency_s)
            for n in range(setting.num_actors)
        ]
        self._hungry = dict.fromkeys(range(setting.num_actors))
        self._dead: set[int] = set()
        self._refused: set[WeightVersion] = set()
        self._newest: WeightVersion | None = None
        self._idle_verifiers = setting.num_verifiers
        self._random = random.Random(f"world/{setting.seed}")
        self._num_deaths = 0
        self._leased_at_s: list[float] = []
        self._group_seconds: list[float] = []

    def run(self) -> Outcome:
        """Until the learner has done all its steps.

        Raises :class:`FatalError` when nothing can happen any more: the rules have deadlocked.
        """
        self.learner.start()
        if self.setting.faults.any_death:
            self._plan_faults()
        ledger, agenda, steps = self.core.ledger, self.agenda, self.learner.steps
        group_seconds = 0.0
        while not self.learner.is_finished:
            since_s, num_groups = (
                agenda.now_s,
                ledger.num_outstanding + len(ledger.state.handed_over),
            )
            if not agenda.step():
                raise FatalError(f"deadlock at {agenda.now_s:.3f} s: {ledger.counts}")
            group_seconds += num_groups * (agenda.now_s - since_s)
            if len(steps) > len(self._group_seconds):
                self._group_seconds.append(group_seconds)
        return self._outcome()

    def _outcome(self) -> Outcome:
        learner = self.learner
        return Outcome(
            steps=tuple(learner.steps),
            lags=learner.lags,
            leased_at_s=tuple(self._leased_at_s),
            group_seconds=tuple(self._group_seconds),
            counts=self.core.ledger.counts,
            num_deaths=self._num_deaths,
            num_forks=learner.num_forks,
            trace_hash=self.core.trace_hash,
        )

    # --- generation -------------------------------------------------------------------------------

    def _on_published(self, version: WeightVersion) -> None:
        """All live actors load the weights; what they sample goes on under them."""
        self._newest = version
        for number, actor in enumerate(self._actors):
            if actor.serving != version and number not in self._dead:
                actor.load(version, self.agenda.now_s)
        self._offer()

    def _offer(self) -> None:
        """Something may have opened admission: held requests are tried again, oldest first."""
        self._refused.clear()
        while any([self._ask(number) for number in list(self._hungry)]):
            pass

    def _ask(self, number: int) -> bool:
        """One request for groups: as many as fit, and at least one; whether any was granted.

        An actor that has room left asks again, after the others.
        """
        actor, size = self._actors[number], self.setting.group_size
        whole = self.setting.takes == "whole groups"
        self._hungry.pop(number, None)
        if actor.num_free < (min(size, actor.slots) if whole else 1):
            return False
        wanted = max(1, actor.num_free // size)
        granted = sum(1 for _ in range(wanted) if self._lease(actor))
        self._start(number)
        self._hungry[number] = None
        return granted > 0

    def _lease(self, actor: VirtualActor) -> bool:
        serving, now_s = actor.serving, self.agenda.now_s
        if serving is None or serving in self._refused:
            return False
        lease = None
        if self.setting.gate == "deadline" or self._count_gate_is_open(serving):
            lease = self.core.lease_prompt(actor.name, serving, now_s)
        if lease is None:
            self._refused.add(serving)
            return False
        self._leased_at_s.append(now_s)
        actor.take(lease, self.workload.group(lease.lease.group_id))
        return True

    def _count_gate_is_open(self, serving: WeightVersion) -> bool:
        started = self.core.ledger.state.next_group_id
        allowed = self.setting.max_policy_lag + 1 + serving.policy_step
        return started < allowed * self.setting.groups_per_step

    def _start(self, number: int) -> None:
        actor = self._actors[number]
        while (job := actor.begin(self.agenda.now_s)) is not None:
            self.agenda.after(
                job.length * self.setting.latency_s, self._finish, number, actor.life, job
            )

    def _finish(self, number: int, life: int, job: Job) -> None:
        actor = self._actors[number]
        if life != actor.life:
            return
        self.core.submit_rollout(actor.finish(job), self.agenda.now_s)
        self._start(number)
        while self._ask(number):
            pass
        self._verify()

    # --- verification -----------------------------------------------------------------------------

    def _verify(self) -> None:
        while self._idle_verifiers:
            lease = self.core.lease_rollout("verifiers", self.agenda.now_s)
            if lease is None:
                return
            self._idle_verifiers -= 1
            self.agenda.after(self.setting.verify_s, self._judge, lease)

    def _judge(self, lease: RolloutLease) -> None:
        self._idle_verifiers += 1
        lost = self.setting.faults.lost_verdicts
        judged = not lost or self._random.random() >= lost
        self.core.submit_verdict(lease, judged, self.agenda.now_s)
        if self._idle_verifiers == 1 or not judged:
            self._verify()
        self.learner.poke()

    # --- failures ---------------------------------------------------------------------------------

    def _plan_faults(self) -> None:
        self.agenda.after(self.setting.faults.heartbeat_s, self._heartbeats)
        if self.setting.faults.actor_deaths:
            self._plan_death()

    def _plan_death(self) -> None:
        rate = self.setting.faults.actor_deaths * self.setting.num_actors
        self.agenda.after(self._random.expovariate(rate), self._die)

    def _die(self) -> None:
        """An actor is gone; its leases expire, and it starts again with the newest weights."""
        number = self._random.randrange(self.setting.num_actors)
        if number not in self._dead:
            self._num_deaths += 1
            self._dead.add(number)
            self._actors[number].die()
            self._hungry.pop(number, None)
            self.agenda.after(self.setting.faults.restart_s, self._restart, number)
        self._plan_death()

    def _restart(self, number: int) -> None:
        self._dead.discard(number)
        if self._newest is not None:
            self._actors[number].load(self._newest, self.agenda.now_s)
        self._ask(number)

    def _heartbeats(self) -> None:
        """Live actors renew what they hold; what nobody renewed goes to somebody else."""
        now_s = self.agenda.now_s
        for actor in self._actors:
            self.core.renew(actor.name, actor.held_leases(), now_s)
        self.core.expire(now_s)
        self._verify()
        self._offer()
        self.agenda.after(self.setting.faults.heartbeat_s, self._heartbeats)


def _rules(setting: Setting) -> LedgerRules:
    is_bound = setting.gate == "deadline"
    return LedgerRules(
        group_size=setting.group_size,
        groups_per_step=setting.groups_per_step,
        max_policy_lag=setting.max_policy_lag if is_bound else _OUT_OF_THE_WAY,
        num_steps=setting.num_steps,
    )
