"""What a run remembers to judge its steps by: the guard before a step, alarms after it.

Its memory is made of step records alone, so a resumed run judges as the one before it would have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from common.config import LearnerConfig
from learner.checkpoints.lineage import Lineage
from learner.checkpoints.step_record import StepStatistics, read_step_record, record_path
from learner.health.alarms import ALARMS, Alarm, raised_alarms
from learner.health.guards import SpikeGuard
from learner.metrics.token_statistics import TokenStatistics


class WatchMemory(msgspec.Struct, frozen=True):
    """What step records say; the same for every rank."""

    first: StepStatistics | None = None
    """Of the run's first step."""
    recent: tuple[StepStatistics, ...] = ()
    """Oldest first."""


@dataclass(slots=True)
class StepWatch:
    """Judges steps; every rank has one and all judge alike."""

    settings: LearnerConfig = field(default_factory=LearnerConfig)
    spikes: SpikeGuard = field(init=False)
    first: StepStatistics | None = None
    raised: frozenset[str] = frozenset()
    """Alarms of the step before."""

    def __post_init__(self) -> None:
        self.spikes = SpikeGuard(self.settings.guards)

    def recall(self, memory: WatchMemory) -> None:
        """Go on from what the records say."""
        self.spikes = SpikeGuard(self.settings.guards)
        self.spikes.remember(*memory.recent)
        self.first = memory.first

    def judge(self, taken: StepStatistics, tokens: TokenStatistics) -> list[Alarm]:
        """Alarms of a step that was taken, which is then remembered."""
        self.first = self.first or taken
        alarms = raised_alarms(
            self.settings.alarms,
            tokens,
            entropy=taken.entropy,
            first_entropy=self.first.entropy,
        )
        spike = self.spikes.warning(taken.loss, taken.grad_norm)
        if spike:
            alarms.append(Alarm("spike", taken.grad_norm, 0.0, spike))
        self.spikes.remember(taken)
        return alarms

    def changes(self, alarms: list[Alarm]) -> Iterator[tuple[str, Alarm | None]]:
        """Alarms that begin with this step, and those that end (None)."""
        names = frozenset(alarm.name for alarm in alarms)
        for alarm in alarms:
            if alarm.name not in self.raised:
                yield alarm.name, alarm
        for name in ALARMS:
            if name in self.raised and name not in names:
                yield name, None
        self.raised = names


def read_memory(directory: Path, lineage: Lineage, policy_step: int, window: int) -> WatchMemory:
    """What the records before ``policy_step`` on this branch say, for the newest ``window`` steps.

    Records of a run that kept no statistics, and missing ones, are passed over.
    """
    steps = [step for step in range(max(0, policy_step - window), policy_step)]
    found = [_statistics(directory, lineage, step) for step in steps]
    return WatchMemory(
        first=_statistics(directory, lineage, 0) if policy_step else None,
        recent=tuple(item for item in found if item is not None),
    )


def _statistics(directory: Path, lineage: Lineage, policy_step: int) -> StepStatistics | None:
    path = record_path(directory, policy_step, lineage.incarnation_at(policy_step))
    return read_step_record(path).statistics if path.exists() else None
