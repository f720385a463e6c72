"""Whether two ways to train give the same reward curve: paired by seed, a third of it at a time."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided 95% quantile of Student's t by degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Third:
    """Mean rewards of one third of the steps, over all seeds."""

    first_step: int
    ours: float
    theirs: float
    difference: float
    half_width: float
    """Of the 95% confidence interval of the difference, infinite for a single seed."""

    @property
    def agree(self) -> bool:
        """Whether 0 lies in the interval."""
        return abs(self.difference) <= self.half_width


def compare_curves(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]
) -> tuple[Third, Third, Third]:
    """The thirds of two sets of curves, [seeds][steps] each; a seed is a pair."""
    num_steps = min(len(curve) for curve in (*ours, *theirs))
    if num_steps < 3:
        raise ValueError(f"a curve needs at least 3 steps, got {num_steps}")
    borders = [num_steps * part // 3 for part in range(4)]
    first, middle, last = (
        _compare(
            start, [_mean(c, start, end) for c in ours], [_mean(c, start, end) for c in theirs]
        )
        for start, end in itertools.pairwise(borders)
    )
    return first, middle, last


def _compare(first_step: int, ours: Sequence[float], theirs: Sequence[float]) -> Third:
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    freedom = len(differences) - 1
    half_width = math.inf
    if freedom:
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        half_width = _T95.get(freedom, 1.96) * error
    return Third(
        first_step=first_step,
        ours=statistics.mean(ours),
        theirs=statistics.mean(theirs),
        difference=statistics.mean(differences),
        half_width=half_width,
    )


def _mean(curve: Sequence[float], start: int, end: int) -> float:
    return statistics.mean(curve[start:end])
