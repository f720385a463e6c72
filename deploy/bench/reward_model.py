"""B19: scoring through the verifier's model backend, against a bare forward of the same model."""

from __future__ import annotations

from deploy.bench.result import BenchResult, hardware_name, spread, versions
from deploy.bench.study import run_study

MIN_RATIO = 0.90
_MODULE = "actors.verification.models.throughput"


def bench_reward_model() -> BenchResult:
    """Measure; the ratio is the backend's tokens a second over the bare forward's."""
    figures = run_study(_MODULE)
    ratio, seconds = figures.pop("ratio"), figures.pop("seconds")
    return BenchResult(
        name="reward-model",
        ratio=ratio,
        goal=f">= {MIN_RATIO:g} of a bare packed forward",
        passed=ratio >= MIN_RATIO,
        baseline="packed forwards of the same model on the same sequences, laid out beforehand",
        hardware=hardware_name(),
        details={
            **figures,
            **{name: spread(values) for name, values in seconds.items()},
            "versions": versions("torch", "transformers"),
        },
    )
