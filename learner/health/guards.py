"""What keeps a bad step off the weights: pure decisions, the same on every rank.

**Spikes.** A step is compared with the median of the steps before it. The median is used because a
spike that was let through does not move it, as it would a mean (ZClip, arXiv 2504.02507, takes an
exponential mean and must clip the spike first for that reason). Only what was taken is remembered,
and step records hold it, so a resumed run decides alike; a replayed step was taken and is not asked
about again.

**Ranks.** What ranks must have in common is compared by digest; a rank whose copy differs from the
majority is named.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from common.config.guards import GuardsConfig
from common.guard_config_rules import MIN_SPIKE_WINDOW
from learner.checkpoints.step_record import StepStatistics


@dataclass(slots=True)
class SpikeGuard:
    """The steps that the next one is compared with."""

    settings: GuardsConfig = field(default_factory=GuardsConfig)
    taken: deque[StepStatistics] = field(default_factory=deque)
    """Oldest first, at most ``spike_window``."""

    def remember(self, *steps: StepStatistics) -> None:
        """Steps that were taken, oldest first."""
        self.taken.extend(steps)
        while len(self.taken) > self.settings.spike_window:
            self.taken.popleft()

    def refuse(self, loss: float, grad_norm: float) -> str:
        """Why the step must not be taken; "" unless ``spike`` is ``skip``."""
        return self.spike(loss, grad_norm) if self.settings.spike == "skip" else ""

    def warning(self, loss: float, grad_norm: float) -> str:
        """What to say of a step that was taken; "" unless ``spike`` is ``warn``."""
        return self.spike(loss, grad_norm) if self.settings.spike == "warn" else ""

    def spike(self, loss: float, grad_norm: float) -> str:
        """Which value is how far above its median, with the key that says so; "" where none is."""
        limits = (
            ("grad_norm", grad_norm, self.settings.max_grad_norm_factor),
            ("loss", abs(loss), self.settings.max_loss_factor),
        )
        for name, value, factor in limits:
            usual = self._median(name)
            if factor and usual is not None and value > factor * usual:
                return (
                    f"{name} {value:.4g} is {value / usual:.1f} times the median {usual:.4g} of "
                    f"{len(self.taken)} steps, learner.guards.max_{name}_factor is {factor:g}"
                )
        return ""

    def _median(self, name: str) -> float | None:
        """None while there are too few steps, or where the median is 0."""
        if len(self.taken) < MIN_SPIKE_WINDOW:
            return None
        return median(abs(getattr(step, name)) for step in self.taken) or None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A rank that holds something else than the others do."""

    rank: int
    name: str
    """Of the tensor."""

    def message(self) -> str:
        """For a person, with the cure."""
        return (
            f"rank {self.rank} holds another {self.name} than the other ranks (its memory or its "
            "device is at fault: start again from the last checkpoint without that machine)"
        )


def differing_ranks(digests: Sequence[Mapping[str, str]]) -> list[Mismatch]:
    """Ranks (by their place in ``digests``) that differ from the majority, by name of the tensor.

    A name that only some ranks have is compared among those; of two that differ the later rank is
    named.
    """
    names = sorted({name for rank in digests for name in rank})
    found = []
    for name in names:
        held = {rank: part[name] for rank, part in enumerate(digests) if name in part}
        usual, _ = Counter(held.values()).most_common(1)[0]
        found += [Mismatch(rank, name) for rank, digest in held.items() if digest != usual]
    return found


def is_finite_float32(values: Iterable[float]) -> bool:
    """Whether all of ``values`` are finite as the tensors that they become."""
    largest = 3.4028234663852886e38
    return all(math.isfinite(value) and abs(value) <= largest for value in values)
