"""How long answers are, before any has been sampled: a lognormal cut at ``actor.max_tokens``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

_NORMAL = NormalDist()
_SLICES = 500


@dataclass(frozen=True, slots=True)
class AnswerLengths:
    """Lengths ``min(X, longest)`` in tokens, X lognormal, with ``mean`` after the cut."""

    mean: float
    longest: float
    sigma: float

    @property
    def mean_square(self) -> float:
        """E[length^2], tokens squared."""
        return _cut_moment(_location(self), self.sigma, self.longest, 2)

    @property
    def truncated_ratio(self) -> float:
        """Share of answers that reach ``longest``."""
        return 1 - _NORMAL.cdf((math.log(self.longest) - _location(self)) / self.sigma)

    @property
    def mean_decoded(self) -> float:
        """Answer tokens that a running sequence has, averaged over time: E[L^2] / 2 E[L]."""
        return self.mean_square / (2 * self.mean)

    def tail_ratio(self, group_size: int) -> float:
        """kappa: the longest answer of a group over the mean answer, E[max of G] / E[L].

        E[max] = integral of 1 - F(x)^G, by the midpoint rule up to the cut.
        """
        location, width = _location(self), self.longest / _SLICES
        inner = (
            1 - _NORMAL.cdf((math.log((place + 0.5) * width) - location) / self.sigma) ** group_size
            for place in range(_SLICES)
        )
        return sum(inner) * width / self.mean


@lru_cache(maxsize=4096)
def _location(lengths: AnswerLengths) -> float:
    """mu of the uncut lognormal such that the cut one has the right mean, by bisection."""
    low, high = math.log(lengths.mean) - lengths.sigma**2, math.log(lengths.longest) + 40.0
    for _ in range(100):
        middle = (low + high) / 2
        if _cut_moment(middle, lengths.sigma, lengths.longest, 1) < lengths.mean:
            low = middle
        else:
            high = middle
    return high


def _cut_moment(location: float, sigma: float, cut: float, order: int) -> float:
    """E[min(X, cut)^order] of a lognormal X, in closed form."""
    z = (math.log(cut) - location) / sigma
    below = math.exp(order * location + (order * sigma) ** 2 / 2) * _NORMAL.cdf(z - order * sigma)
    return below + cut**order * (1 - _NORMAL.cdf(z))
