"""Values of a committed step that a person should know of: pure decisions on its statistics.

The limits follow what has broken runs elsewhere: engines whose log-probabilities drifted from the
trainer's at lag 0 (Yao et al. 2025; with weights that were never synchronised the mean ratio was
0.03), and entropy that was spent within the first 200 steps (Cui et al., arXiv 2505.22617).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from common.config.guards import AlarmsConfig
from learner.metrics.token_statistics import TokenStatistics

ALARMS: Mapping[str, str] = {
    "lag0_kl": "the engine samples from another distribution than the learner computes: compare "
    "model.dtype, learner.head_dtype and the canaries in the actor's log",
    "lag0_gap": "one token is judged quite differently: replay the step and look at its log-probs",
    "stale_kl": "the policy moves too far within learner.max_policy_lag: lower "
    "learner.learning_rate or learner.max_policy_lag",
    "ratio": "sampled weights are not those that the learner thinks: look for weight_syncs in "
    "headrace status; at lag > 0 lower learner.learning_rate",
    "clip_ratio": "much of the batch has no gradient: lower learner.learning_rate or "
    "learner.updates_per_batch, or raise learner.loss.clip_high",
    "entropy": "the policy has become deterministic: resume from an older checkpoint with a lower "
    "learner.learning_rate, a KL or entropy term, or clip_high above clip_low",
    "entropy_ratio": "entropy collapses: raise learner.loss.clip_high above clip_low, or add "
    "learner.loss.entropy_coefficient",
    "spike": "replay the step to see which tokens did it; learner.guards.spike = "
    '"skip" drops such batches',
}
"""Every alarm with what to do about it."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One limit that a step has crossed."""

    name: str
    """Of :data:`ALARMS`."""
    value: float
    limit: float
    detail: str = ""

    def message(self) -> str:
        """Value, limit and cure."""
        what = self.detail or f"{self.name} is {self.value:.4g}"
        if self.name not in _KEYS:
            return f"{what} ({ALARMS[self.name]})"
        return f"{what}, learner.alarms.{_KEYS[self.name]} is {self.limit:g} ({ALARMS[self.name]})"


_KEYS: Mapping[str, str] = {
    "lag0_kl": "max_lag0_kl",
    "lag0_gap": "max_lag0_gap",
    "stale_kl": "max_stale_kl",
    "ratio": "max_ratio_deviation",
    "clip_ratio": "max_clip_ratio",
    "entropy": "min_entropy",
    "entropy_ratio": "min_entropy_ratio",
}


def raised_alarms(
    limits: AlarmsConfig,
    statistics: TokenStatistics,
    *,
    entropy: float | None,
    first_entropy: float | None,
) -> list[Alarm]:
    """Alarms of one step; ``first_entropy`` is that of the run's first step."""
    return [*_of_tokens(limits, statistics), *_of_entropy(limits, entropy, first_entropy)]


def _of_tokens(limits: AlarmsConfig, statistics: TokenStatistics) -> Iterator[Alarm]:
    fresh = statistics.by_lag.get(0)
    stale, total = statistics.stale(), statistics.total()
    if fresh is not None and fresh.tokens:
        yield from _above("lag0_kl", fresh.kl / fresh.tokens, limits.max_lag0_kl)
        yield from _above("lag0_gap", fresh.gap_max, limits.max_lag0_gap)
    if stale.tokens:
        yield from _above("stale_kl", stale.kl / stale.tokens, limits.max_stale_kl)
    if total.tokens:
        mean = total.ratio / total.tokens
        detail = f"the mean importance ratio is {mean:.4g}"
        yield from _above("ratio", abs(mean - 1), limits.max_ratio_deviation, detail)
        clipped = (total.clipped_low + total.clipped_high) / total.tokens
        yield from _above("clip_ratio", clipped, limits.max_clip_ratio)


def _of_entropy(
    limits: AlarmsConfig, entropy: float | None, first: float | None
) -> Iterator[Alarm]:
    if entropy is None:
        return
    if limits.min_entropy and entropy < limits.min_entropy:
        yield Alarm("entropy", entropy, limits.min_entropy)
    if first and limits.min_entropy_ratio and entropy < limits.min_entropy_ratio * first:
        detail = f"entropy is {entropy:.4g} of {first:.4g} nats in the first step"
        yield Alarm("entropy_ratio", entropy / first, limits.min_entropy_ratio, detail)


def _above(name: str, value: float, limit: float, detail: str = "") -> Iterator[Alarm]:
    """Not a number is above every limit."""
    if limit and not value <= limit:
        yield Alarm(name, value, limit, detail)
