"""Where a training step is written down: one JSON object a step, a few readable rollouts, gauges.

Rank 0 only. Nothing is ever NaN: the files are strict JSON, and what JSON cannot say is left out.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from common.config import Config, RunPaths
from common.errors import FatalError
from common.files import append_line
from common.metrics import Metrics
from common.text_tokenizer import TextTokenizer
from common.types import RolloutId, VerifiedGroup, VerifiedRollout
from learner.batches.batch import Document
from learner.batches.screening import trainable
from learner.metrics.step_metrics import describe_outcome
from learner.metrics.trackers import Trackers
from learner.step.training_batch import StepOutcome

NUM_READABLE = 4
"""Rollouts a step that are written out as text."""


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
    ("headrace_replayed_routing_ratio", "replayed_routing_ratio"),
    ("headrace_response_length_right_tokens", "response_length_right_mean"),
    ("headrace_response_length_wrong_tokens", "response_length_wrong_mean"),
    ("headrace_response_length_truncated_tokens", "response_length_truncated_mean"),
    ("headrace_trained_tokens_per_second", "tokens_per_second"),
    ("headrace_mfu_ratio", "mfu"),
    ("headrace_rss_peak_bytes", "rss_peak_bytes"),
    ("headrace_device_memory_peak_bytes", "device_peak_bytes"),
)


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


def _finite(row: Mapping[str, object]) -> dict[str, object]:
    """Without what JSON cannot say: readers have defaults for missing keys, not for null."""
    return {
        key: value
        for key, value in row.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }
