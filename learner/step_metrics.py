"""What a training step says about itself: one JSON object a step, a few readable rollouts, gauges.

Rank 0 only. A mean over nothing is left out, and nothing is ever NaN: the files are strict JSON.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import structlog

from common.clock import Clock, MonotonicClock
from common.config import Config, RunPaths
from common.errors import FatalError
from common.files import append_line
from common.metrics import Metrics
from common.text_tokenizer import TextTokenizer
from common.types import FinishReason, RolloutId, VerifiedGroup, VerifiedRollout
from learner.batch import Document
from learner.critic_update import value_statistics
from learner.screening import Screen, judged, lag_histogram, trainable
from learner.token_statistics import TokenStatistics, describe_lag
from learner.trackers import Trackers
from learner.training_batch import StepOutcome

NUM_READABLE = 4
"""Rollouts a step that are written out as text."""


@dataclass(slots=True)
class Stopwatch:
    """Seconds by stage since the last :meth:`take`."""

    clock: Clock = field(default_factory=MonotonicClock)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the block's time under ``name``."""
        start = self.clock.now_s()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self.clock.now_s() - start

    def take(self) -> dict[str, float]:
        """Seconds by stage; starts anew."""
        taken, self.seconds = self.seconds, {}
        return taken


@dataclass(frozen=True, slots=True)
class ReadableRollout:
    """One rollout of a step, kept to be shown."""

    group: VerifiedGroup
    item: VerifiedRollout
    token_ids: Sequence[int]


def readable_rollouts(
    groups: Sequence[VerifiedGroup], documents: Mapping[RolloutId, Document], *, limit: int
) -> list[ReadableRollout]:
    """The first rollout at hand of each of the first ``limit`` groups."""
    chosen = []
    for group in groups[: max(0, limit)]:
        for item in trainable(group):
            document = documents.get(item.rollout.rollout_id)
            if document is not None:
                chosen.append(ReadableRollout(group, item, document.completion_token_ids.tolist()))
                break
    return chosen


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


class Telemetry:
    """Writes ``steps.jsonl`` and ``rollouts.jsonl`` and sets the process's gauges."""

    def __init__(
        self,
        config: Config,
        paths: RunPaths,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger | None = None,
    ) -> None:
        paths.telemetry.mkdir(parents=True, exist_ok=True)
        self._steps = paths.telemetry / "steps.jsonl"
        self._rollouts = paths.telemetry / "rollouts.jsonl"
        self._metrics = metrics
        self._tokenizer = TextTokenizer.load(config.model.path)
        self._trackers = Trackers(config, paths, log or structlog.get_logger())
        self._reported = set(_reported_steps(self._steps))

    def has_step(self, incarnation: int, policy_step: int) -> bool:
        """Whether the step has its line, perhaps from before a restart."""
        return (incarnation, policy_step) in self._reported

    def record_step(
        self,
        *,
        policy_step: int,
        incarnation: int,
        groups: Mapping[str, object],
        outcome: StepOutcome,
        seconds: Mapping[str, float],
        more: Mapping[str, object] | None = None,
    ) -> None:
        """One line about the batch computed at ``policy_step``; ``more`` values stand in it too."""
        row = _finite(
            {
                "time": time.time(),
                "policy_step": policy_step,
                "incarnation": incarnation,
                **groups,
                **describe_outcome(outcome),
                **(more or {}),
                "seconds": {name: round(value, 6) for name, value in sorted(seconds.items())},
            }
        )
        _append(self._steps, row)
        self._reported.add((incarnation, policy_step))
        self._set_gauges(row, seconds)
        self._trackers.log_step(policy_step, {key: row[key] for key in row if key != "time"})

    def close(self) -> None:
        """Write what trackers have buffered."""
        self._trackers.close()

    def record_rollouts(self, policy_step: int, rollouts: Sequence[ReadableRollout]) -> None:
        """One line for each rollout that is shown."""
        for shown in rollouts:
            row = {
                "policy_step": policy_step,
                "group_id": shown.group.group_id,
                "prompt": shown.group.prompt.text,
                "completion": self._tokenizer.decode(shown.token_ids),
                "reward": shown.item.verdict.reward,
                "accuracy": shown.item.verdict.component("accuracy"),
                "num_tokens": len(shown.token_ids),
                "finish_reason": shown.item.rollout.finish_reason.value,
                "version": str(shown.item.rollout.oldest_version),
            }
            _append(self._rollouts, row)

    def _set_gauges(self, row: Mapping[str, object], seconds: Mapping[str, float]) -> None:
        for metric, key in _GAUGES:
            value = row.get(key)
            if isinstance(value, int | float):
                self._metrics.set(metric, value)
        self._set_lag_gauges(row)
        num_tokens = row["num_tokens"]
        if isinstance(num_tokens, int):
            self._metrics.inc("headrace_trained_tokens_total", num_tokens)
        for stage, value in seconds.items():
            idle = stage in ("wait", "publish_wait")
            name = "headrace_idle_seconds_total" if idle else "headrace_busy_seconds_total"
            self._metrics.inc(name, value, stage=f"learner_{stage}")

    def _set_lag_gauges(self, row: Mapping[str, object]) -> None:
        by_lag = row.get("by_lag")
        for lag, values in by_lag.items() if isinstance(by_lag, dict) else ():
            for metric, key in _LAG_GAUGES:
                if (value := values.get(key)) is not None:
                    self._metrics.set(metric, value, lag=lag)


_LAG_GAUGES = (
    ("headrace_lag_tokens", "tokens"),
    ("headrace_lag_kl_nats", "kl"),
    ("headrace_lag_importance_ratio_mean", "ratio_mean"),
    ("headrace_lag_importance_ratio_p99", "ratio_p99"),
    ("headrace_lag_effective_sample_ratio", "effective_sample_ratio"),
)
_GAUGES = (
    ("headrace_reward_mean", "reward_mean"),
    ("headrace_accuracy_mean", "accuracy_mean"),
    ("headrace_response_length_tokens", "response_length_mean"),
    ("headrace_policy_lag_steps", "lag_max"),
    ("headrace_loss", "loss"),
    ("headrace_grad_norm", "grad_norm"),
    ("headrace_entropy_nats", "entropy"),
    ("headrace_clip_ratio", "clip_ratio"),
    ("headrace_behavior_kl_nats", "kl_behavior"),
    ("headrace_reference_kl_nats", "kl_reference"),
    ("headrace_loss_policy", "loss_policy"),
    ("headrace_loss_kl", "loss_kl"),
    ("headrace_loss_entropy", "loss_entropy"),
    ("headrace_clip_low_ratio", "clip_low_ratio"),
    ("headrace_clip_high_ratio", "clip_high_ratio"),
    ("headrace_importance_ratio_mean", "importance_ratio_mean"),
    ("headrace_importance_ratio_max", "importance_ratio_max"),
    ("headrace_effective_sample_ratio", "effective_sample_ratio"),
    ("headrace_zero_advantage_ratio", "zero_advantage_ratio"),
    ("headrace_truncated_ratio", "truncated_ratio"),
    ("headrace_response_length_right_tokens", "response_length_right_mean"),
    ("headrace_response_length_wrong_tokens", "response_length_wrong_mean"),
    ("headrace_response_length_truncated_tokens", "response_length_truncated_mean"),
    ("headrace_trained_tokens_per_second", "tokens_per_second"),
    ("headrace_mfu_ratio", "mfu"),
    ("headrace_rss_peak_bytes", "rss_peak_bytes"),
    ("headrace_device_memory_peak_bytes", "device_peak_bytes"),
)


def _reported_steps(path: Path) -> Iterator[tuple[int, int]]:
    """(incarnation, policy_step) of each whole line; a kill may have left half of the last one."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        yield row["incarnation"], row["policy_step"]


def _append(path: Path, row: Mapping[str, object]) -> None:
    try:
        append_line(path, json.dumps(row, allow_nan=False))
    except OSError as error:
        raise FatalError(
            f"{path}: telemetry cannot be written: {error.strerror} (free space on that disk and "
            "start again: no step is lost)"
        ) from None


def _length(item: VerifiedRollout) -> int:
    return item.rollout.num_completion_tokens


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _weighted_mean(tokens_by_lag: Mapping[int, int]) -> float | None:
    total = sum(tokens_by_lag.values())
    return sum(lag * tokens for lag, tokens in tokens_by_lag.items()) / total if total else None


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


def _finite(row: Mapping[str, object]) -> dict[str, object]:
    """Without what JSON cannot say: readers have defaults for missing keys, not for null."""
    return {
        key: value
        for key, value in row.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }
