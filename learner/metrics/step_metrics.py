"""What a training step says of itself: its groups, its tokens and its outcome as named numbers.

Pure; ``telemetry`` writes them down. A mean over nothing is None and left out there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from common.types import FinishReason, RolloutHeader, VerifiedGroup, VerifiedRollout
from learner.batches.screening import Screen, judged, lag_histogram
from learner.metrics.token_statistics import TokenStatistics, describe_lag
from learner.step.critic_update import value_statistics
from learner.step.training_batch import StepOutcome


def describe_groups(groups: Sequence[VerifiedGroup], screen: Screen) -> dict[str, object]:
    """Rewards and lengths of a training batch, lag and number of its trained tokens."""
    items = [item for group in groups for item in judged(group)]
    finished = [_length(item) for item in items if item.rollout.finish_reason is FinishReason.STOP]
    truncated = [
        _length(item) for item in items if item.rollout.finish_reason is FinishReason.LENGTH
    ]
    lags = lag_histogram(groups, screen)
    return {
        "num_groups": len(groups),
        "num_rollouts": len(items),
        "num_tokens": sum(item.num_trained_tokens for item in items),
        "num_masked_tokens": sum(_length(item) - item.num_trained_tokens for item in items),
        "reward_mean": _mean([item.verdict.reward or 0.0 for item in items]),
        "accuracy_mean": _component_mean(items, "accuracy"),
        "format_mean": _component_mean(items, "format"),
        "response_length_mean": _mean(finished + truncated),
        "response_length_finished_mean": _mean(finished),
        "response_length_truncated_mean": _mean(truncated),
        **_lengths_by_outcome(items),
        "truncated_ratio": _mean([0.0] * len(finished) + [1.0] * len(truncated)),
        "zero_advantage_ratio": _mean([float(_is_uniform(group)) for group in groups]),
        "replayed_routing_ratio": _recorded_ratio([item.rollout for item in items]),
        "lag_histogram": {str(lag): tokens for lag, tokens in lags.items()},
        "lag_max": max((screen.group_lag(group) for group in groups), default=0),
        "lag_mean": _weighted_mean(lags),
    }


def describe_tokens(tokens: TokenStatistics, denominator: float) -> dict[str, object]:
    """Parts of the loss, and the distance between policy and sampler, together and by lag."""
    total = tokens.total()
    together = describe_lag(total)
    named = {
        "ratio_max": "importance_ratio_max",
        "ratio_p01": "importance_ratio_p01",
        "ratio_p50": "importance_ratio_p50",
        "ratio_p99": "importance_ratio_p99",
        "clipped_low_ratio": "clip_low_ratio",
        "clipped_high_ratio": "clip_high_ratio",
        "effective_sample_ratio": "effective_sample_ratio",
        "logprob_gap_mean": "logprob_gap_mean",
        "logprob_gap_max": "logprob_gap_max",
    }
    parts = tokens.losses if denominator else {}
    return {
        **{f"loss_{part}": value / denominator for part, value in parts.items()},
        **{name: together[key] for key, name in named.items() if key in together},
        "by_lag": {
            str(lag): {key: _rounded(value) for key, value in describe_lag(sums).items()}
            for lag, sums in sorted(tokens.by_lag.items())
        },
    }


def _rounded(value: float) -> float | None:
    """Six digits; None for what JSON cannot say."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def describe_outcome(outcome: StepOutcome) -> dict[str, object]:
    """Loss, gradient and log-probability statistics over all ranks."""
    return {
        "loss": outcome.loss,
        "grad_norm": outcome.grad_norm,
        "entropy": outcome.mean("entropy"),
        "importance_ratio_mean": outcome.mean("behavior_ratio"),
        "importance_capped_ratio": outcome.mean("capped"),
        "clip_ratio": outcome.mean("clipped"),
        "kl_behavior": outcome.mean("behavior_kl"),
        "kl_reference": outcome.mean("reference_kl", over="reference_tokens"),
        "kl_behavior_lag0": outcome.mean("on_policy_kl", over="on_policy_tokens"),
        "logprob_gap_lag0_max": (
            outcome.on_policy_gap if outcome.sums["on_policy_tokens"] else None
        ),
        "num_updates": outcome.num_updates,
        "updates_skipped": outcome.num_skipped,
        **value_statistics(outcome.sums),
    }


def _length(item: VerifiedRollout) -> int:
    return item.rollout.num_completion_tokens


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _weighted_mean(tokens_by_lag: Mapping[int, int]) -> float | None:
    total = sum(tokens_by_lag.values())
    return sum(lag * tokens for lag, tokens in tokens_by_lag.items()) / total if total else None


def _recorded_ratio(rollouts: Sequence[RolloutHeader]) -> float | None:
    """Share of tokens whose experts were recorded; None where nothing is."""
    recorded = sum(item.routing.num_tokens for item in rollouts if item.routing is not None)
    return recorded / sum(item.num_tokens for item in rollouts) if recorded else None


def _lengths_by_outcome(items: Sequence[VerifiedRollout]) -> dict[str, float | None]:
    """Mean lengths of right and wrong answers that ended by themselves.

    Right is what the accuracy says, or without one a reward above 0.
    """
    lengths: dict[bool, list[int]] = {True: [], False: []}
    for item in items:
        if item.rollout.finish_reason is FinishReason.STOP:
            accuracy = item.verdict.component("accuracy")
            score = accuracy if accuracy is not None else item.verdict.reward or 0.0
            is_right = score >= 1.0 if accuracy is not None else score > 0.0
            lengths[is_right].append(_length(item))
    return {
        "response_length_right_mean": _mean(lengths[True]),
        "response_length_wrong_mean": _mean(lengths[False]),
    }


def _component_mean(items: Sequence[VerifiedRollout], name: str) -> float | None:
    values = [item.verdict.component(name) for item in items]
    return _mean([value for value in values if value is not None])


def _is_uniform(group: VerifiedGroup) -> bool:
    """True when all rewards are equal, so that the group carries no gradient."""
    return len({item.verdict.reward for item in judged(group)}) <= 1
