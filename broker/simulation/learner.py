"""A virtual learner: pulls groups, is busy for their tokens, commits, publishes, sometimes dies."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from broker.simulation.agenda import Agenda
from broker.simulation.core import Core
from broker.simulation.lag_book import LagBook, Lineage
from broker.simulation.lengths import Workload
from broker.simulation.setting import Setting
from common.messages import CommitStep, ResumeLearner, SteppedBatch
from common.types import VerifiedGroup, WeightVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One committed batch."""

    at_s: float
    """When it was committed."""
    busy_s: float
    """What the learner spent on it."""
    mean_lag: float
    """Over its rollouts, at their first token."""
    survivors: int
    """Groups outstanding right after the commit."""


class VirtualLearner:
    """One learner; ``on_published`` is called when actors can have new weights."""

    def __init__(
        self,
        setting: Setting,
        core: Core,
        agenda: Agenda,
        workload: Workload,
        on_published: Callable[[WeightVersion], None],
    ) -> None:
        self._setting = setting
        self._core = core
        self._agenda = agenda
        self._workload = workload
        self._on_published = on_published
        self._random = random.Random(f"learner/{setting.seed}")
        self.lineage = Lineage()
        self.lags = LagBook()
        self.checkpoint_step = 0
        self.num_forks = 0
        self.steps: list[Step] = []
        self._records: dict[int, tuple[int, ...]] = {}
        self._held: list[VerifiedGroup] = []
        self._busy_s = 0.0
        self._is_busy = True
        self._life = 0
        self._is_dead = False
        self._publishing = False
        self._to_publish: WeightVersion | None = None

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done."""
        return self.lineage.policy_step >= self._setting.num_steps

    def start(self) -> None:
        """Register as a learner that starts from its checkpoint."""
        self._is_busy = False
        self._resume(forked=False)
        if self._setting.faults.learner_deaths:
            self._plan_death()

    def poke(self) -> None:
        """Something was verified, or this learner has become idle: take what may be had."""
        if self._is_busy or self.is_finished:
            return
        now_s = self._agenda.now_s
        lacking = self._setting.groups_per_step - len(self._held)
        groups = self._core.pull_groups(self.lineage.policy_step, lacking, now_s)
        if not groups:
            return
        if self._setting.learner == "streaming":
            self._train(groups)
            return
        self._held.extend(groups)
        if len(groups) == lacking:
            batch, self._held = self._held, []
            self._train(batch)

    def _train(self, groups: Sequence[VerifiedGroup]) -> None:
        setting = self._setting
        took_s = sum(setting.train_s(self._workload.group(group.group_id)) for group in groups)
        self._is_busy = True
        self._agenda.after(took_s, self._trained, self._life, groups, took_s)

    def _trained(self, life: int, groups: Sequence[VerifiedGroup], took_s: float) -> None:
        if life != self._life:
            return
        self._is_busy = False
        self._busy_s += took_s
        self._held.extend(groups)
        if len(self._held) == self._setting.groups_per_step:
            self._commit()
        self.poke()

    def _commit(self) -> None:
        now_s, step = self._agenda.now_s, self.lineage.policy_step
        lag = self.lags.note(self._held, self.lineage)
        group_ids = tuple(group.group_id for group in self._held)
        self._records[step] = group_ids
        commit = CommitStep(
            incarnation=self.lineage.incarnation, policy_step=step, group_ids=group_ids
        )
        self._core.commit_step(commit, now_s)
        self.lineage.advance()
        outstanding = self._core.ledger.num_outstanding
        self.steps.append(
            Step(at_s=now_s, busy_s=self._busy_s, mean_lag=lag, survivors=outstanding)
        )
        self._held, self._busy_s = [], 0.0
        if (step + 1) % self._setting.checkpoint_every == 0 or self.is_finished:
            self.checkpoint_step = step + 1
            self._core.commit_checkpoint(step + 1, now_s)
        self._publish()

    # --- weights ----------------------------------------------------------------------------------

    def _publish(self) -> None:
        """At most one publish is in flight; a newer snapshot replaces one that waits."""
        self._to_publish = self.lineage.version
        if self._publishing:
            return
        self._publishing = True
        late_s = self._random.uniform(0.0, self._setting.faults.late_publish_s)
        delay_s = self._setting.publish_s + late_s
        version, self._to_publish = self._to_publish, None
        self._agenda.after(delay_s, self._published, self._life, version)

    def _published(self, life: int, version: WeightVersion) -> None:
        if life != self._life:
            return
        self._publishing = False
        self._core.announce(version, self._agenda.now_s)
        self._on_published(version)
        if self._to_publish is not None:
            self._publish()

    # --- failures ---------------------------------------------------------------------------------

    def _plan_death(self) -> None:
        rate = self._setting.faults.learner_deaths
        self._agenda.after(self._random.expovariate(rate), self._die)

    def _die(self) -> None:
        """Between two chunks or inside one: what was accumulated is lost."""
        self._plan_death()
        if self._is_dead:
            return
        self._is_dead = True
        self._life += 1
        self._is_busy, self._publishing, self._to_publish = True, False, None
        self._held, self._busy_s = [], 0.0
        forked = self._random.random() < self._setting.faults.fork_share
        self._agenda.after(self._setting.faults.restart_s, self._restart, forked)

    def _restart(self, forked: bool) -> None:
        self._is_dead = self._is_busy = False
        if forked and not self.is_finished:
            self.num_forks += 1
            self.lineage.fork(self.checkpoint_step)
        self._resume(forked)

    def _resume(self, forked: bool) -> None:
        """From the checkpoint, over the step records that lead to the current weights."""
        lineage = self.lineage
        self._records = {k: ids for k, ids in self._records.items() if k < lineage.policy_step}
        stepped = tuple(
            SteppedBatch(policy_step=k, group_ids=self._records[k])
            for k in range(self.checkpoint_step, lineage.policy_step)
        )
        message = ResumeLearner(
            incarnation=lineage.incarnation,
            policy_step=self.checkpoint_step,
            stepped=stepped,
            forked=forked and not self.is_finished,
        )
        self._core.resume(message, self._agenda.now_s)
        self._published(self._life, lineage.version)
        self.poke()
