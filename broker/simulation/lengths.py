"""Seeded lengths of completions, in units of their mean."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

_NORMAL = NormalDist()


class Lengths(Protocol):
    """A distribution of lengths with mean 1 and a longest value."""

    @property
    def longest(self) -> float:
        """The cap."""
        ...

    def sample(self, source: random.Random) -> float:
        """One length."""
        ...


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Lognormal lengths cut at ``cap`` times the mean; shorter and heavier with ``sigma``."""

    sigma: float = 0.8
    cap: float = 4.0

    @property
    def longest(self) -> float:
        """The cap over the mean that is left after cutting."""
        return self.cap / self._cut_mean()

    def sample(self, source: random.Random) -> float:
        """One length; the mean over all is 1."""
        uncut = source.lognormvariate(-(self.sigma**2) / 2, self.sigma)
        return min(uncut, self.cap) / self._cut_mean()

    def _cut_mean(self) -> float:
        """E[min(X, cap)] of a lognormal X with mean 1."""
        z = (math.log(self.cap) + self.sigma**2 / 2) / self.sigma
        return _NORMAL.cdf(z - self.sigma) + self.cap * (1 - _NORMAL.cdf(z))


@dataclass(frozen=True, slots=True)
class Pareto:
    """Pareto lengths, a power-law tail with exponent ``alpha`` > 1, cut at ``cap`` means."""

    alpha: float = 1.5
    cap: float = 16.0

    @property
    def longest(self) -> float:
        """The cap over the mean that is left after cutting."""
        return self.cap / self._cut_mean()

    def sample(self, source: random.Random) -> float:
        """One length; the mean over all is 1."""
        uncut = source.paretovariate(self.alpha) * (self.alpha - 1) / self.alpha
        return min(uncut, self.cap) / self._cut_mean()

    def _cut_mean(self) -> float:
        """E[min(X, cap)] of a Pareto X with mean 1: the tail beyond the cap is cut away."""
        smallest = (self.alpha - 1) / self.alpha
        beyond_cap = math.pow(smallest / self.cap, self.alpha)
        return 1 - beyond_cap * self.cap / (self.alpha - 1)


@dataclass(frozen=True, slots=True)
class Workload:
    """The lengths of every rollout of a run, the same for a seed whatever is scheduled."""

    lengths: Lengths
    group_size: int
    seed: int

    def group(self, group_id: int) -> tuple[float, ...]:
        """Lengths of the rollouts of one group."""
        source = random.Random(f"lengths/{self.seed}/{group_id}")
        return tuple(self.lengths.sample(source) for _ in range(self.group_size))


def tail_ratio(lengths: Lengths, group_size: int, num_groups: int = 20_000) -> float:
    """kappa: the longest rollout of a group over the mean rollout, by seeded sampling."""
    source = random.Random(0)
    longest = (max(lengths.sample(source) for _ in range(group_size)) for _ in range(num_groups))
    return sum(longest) / num_groups
