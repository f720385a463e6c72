"""How far the policy is from the one that sampled, a policy lag each.

Lag 0 shows what the numerics of two engines differ by; what later lags have more is staleness. All
of it adds up over microbatches and ranks, percentiles too: they are read off a histogram of
log-ratios.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from common.arrays import Float64Array
from learner.metrics.token_view import TokenView
from learner.objectives.kl import k3_kl
from learner.objectives.ratios import importance_ratio

LOG_RATIO_LIMIT = 4.0
"""Log-ratios beyond it are counted in the outermost bins."""
NUM_BINS = 1600
"""Bins of 0.005 nats: a percentile of the ratio is right to 0.25 %."""
PERCENTILES = (0.01, 0.5, 0.99)


class LagSums(msgspec.Struct, kw_only=True):
    """Sums over the tokens of one policy lag."""

    tokens: int = 0
    kl: float = 0.0
    """k3 estimate of KL(behavior || policy), Schulman 2020, nats."""
    ratio: float = 0.0
    """policy / behavior."""
    ratio_squared: float = 0.0
    ratio_max: float = 0.0
    gap: float = 0.0
    """|log policy - log behavior|, nats."""
    gap_max: float = 0.0
    capped: float = 0.0
    clipped_low: float = 0.0
    clipped_high: float = 0.0
    bins: dict[int, int] = {}
    """Tokens by bin of the log-ratio; empty bins are left out."""

    def add(self, other: LagSums) -> None:
        """Take another microbatch or rank in."""
        for name in ("tokens", "kl", "ratio", "ratio_squared", "gap", "capped"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.clipped_low += other.clipped_low
        self.clipped_high += other.clipped_high
        self.ratio_max = max(self.ratio_max, other.ratio_max)
        self.gap_max = max(self.gap_max, other.gap_max)
        for number, count in other.bins.items():
            self.bins[number] = self.bins.get(number, 0) + count

    @property
    def effective_sample_ratio(self) -> float:
        """Kish's effective sample size over the number of tokens: (sum w)^2 / (T sum w^2)."""
        whole = self.tokens * self.ratio_squared
        return self.ratio**2 / whole if whole else 0.0

    def ratio_percentile(self, share: float) -> float:
        """The importance ratio that ``share`` of the tokens stay below or at; needs a token."""
        wanted, seen = share * self.tokens, 0
        for number in sorted(self.bins):
            seen += self.bins[number]
            if seen >= wanted:
                break
        return math.exp(_bin_centre(number))


@dataclass(slots=True)
class TokenStatistics:
    """Sums of one training batch by policy lag, and the parts of its loss."""

    by_lag: dict[int, LagSums] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    """Unnormalised sums by part: what the loss would be of that term alone."""

    def observe(self, view: TokenView, kl_coefficient: float, entropy_coefficient: float) -> None:
        """Add a microbatch; a coefficient is 0 where the term is no part of the loss."""
        microbatch = view.microbatch
        policy = view.unmoved_logprobs
        log_ratio = (policy - microbatch.behavior_logprobs).double()
        ratio = importance_ratio(policy, microbatch.behavior_logprobs).double()
        columns = {
            "kl": k3_kl(microbatch.behavior_logprobs, policy),
            "ratio": ratio,
            "ratio_squared": ratio * ratio,
            "gap": log_ratio.abs(),
            "capped": view.terms.capped,
            "clipped_low": view.terms.clipped & (view.terms.ratio < 1),
            "clipped_high": view.terms.clipped & (view.terms.ratio > 1),
        }
        table = torch.stack([column.double() for column in columns.values()]).cpu().numpy()
        self._add_lags(list(columns), table, microbatch.lags.cpu().numpy(), log_ratio.cpu().numpy())
        self._add_losses(view, kl_coefficient, entropy_coefficient)

    def _add_lags(
        self,
        names: Sequence[str],
        table: Float64Array,
        lags: npt.NDArray[np.int64],
        log_ratios: Float64Array,
    ) -> None:
        for lag in np.unique(lags).tolist():
            chosen = lags == lag
            part = table[:, chosen]
            sums = LagSums(
                tokens=int(chosen.sum()),
                ratio_max=float(part[names.index("ratio")].max()),
                gap_max=float(part[names.index("gap")].max()),
                bins=_histogram(log_ratios[chosen]),
                **dict(zip(names, part.sum(axis=1).tolist(), strict=True)),
            )
            self.by_lag.setdefault(lag, LagSums()).add(sums)

    def _add_losses(self, view: TokenView, kl: float, entropy: float) -> None:
        weights = view.microbatch.weights
        whole = -(view.terms.objective.detach() * weights).sum(dtype=torch.float64).item()
        parts = {"kl": 0.0, "entropy": 0.0}
        if kl and view.terms.reference_kl is not None:
            penalty = (view.terms.reference_kl * weights).sum(dtype=torch.float64).item()
            parts["kl"] = kl * penalty
        if entropy:
            bonus = (view.entropy.detach() * weights).sum(dtype=torch.float64).item()
            parts["entropy"] = -entropy * bonus
        parts["policy"] = whole - parts["kl"] - parts["entropy"]
        for name, value in parts.items():
            self.losses[name] = self.losses.get(name, 0.0) + value

    def encode(self) -> bytes:
        """What :meth:`merged` reads: a rank's share, to be gathered."""
        return msgspec.msgpack.encode(_Share(self.by_lag, self.losses))

    @classmethod
    def merged(cls, shares: Sequence[bytes]) -> TokenStatistics:
        """The statistics of all ranks, in rank order."""
        whole = cls()
        for share in (msgspec.msgpack.decode(item, type=_Share) for item in shares):
            for lag, sums in share.by_lag.items():
                whole.by_lag.setdefault(lag, LagSums()).add(sums)
            for name, value in share.losses.items():
                whole.losses[name] = whole.losses.get(name, 0.0) + value
        return whole

    def total(self) -> LagSums:
        """All lags together."""
        whole = LagSums()
        for lag in sorted(self.by_lag):
            whole.add(self.by_lag[lag])
        return whole

    def stale(self) -> LagSums:
        """All lags but 0 together."""
        whole = LagSums()
        for lag in sorted(self.by_lag):
            if lag:
                whole.add(self.by_lag[lag])
        return whole


class _Share(msgspec.Struct, frozen=True, array_like=True):
    by_lag: dict[int, LagSums]
    losses: dict[str, float]


def describe_lag(sums: LagSums) -> Mapping[str, float]:
    """Means and extremes of one lag, by the names that telemetry has for them."""
    if not sums.tokens:
        return {}
    low, median, high = (sums.ratio_percentile(share) for share in PERCENTILES)
    return {
        "tokens": sums.tokens,
        "kl": sums.kl / sums.tokens,
        "logprob_gap_mean": sums.gap / sums.tokens,
        "logprob_gap_max": sums.gap_max,
        "ratio_mean": sums.ratio / sums.tokens,
        "ratio_max": sums.ratio_max,
        "ratio_p01": low,
        "ratio_p50": median,
        "ratio_p99": high,
        "capped_ratio": sums.capped / sums.tokens,
        "clipped_low_ratio": sums.clipped_low / sums.tokens,
        "clipped_high_ratio": sums.clipped_high / sums.tokens,
        "effective_sample_ratio": sums.effective_sample_ratio,
    }


def _histogram(log_ratios: Float64Array) -> dict[int, int]:
    scaled = (np.nan_to_num(log_ratios, nan=0.0) / LOG_RATIO_LIMIT).clip(-1, 1)
    numbers = np.rint((scaled + 1) / 2 * NUM_BINS).astype(np.int64)
    found, counts = np.unique(numbers, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _bin_centre(number: int) -> float:
    return (number / NUM_BINS * 2 - 1) * LOG_RATIO_LIMIT
