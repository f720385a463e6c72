"""B14: a learner step against bare forward, backward and AdamW of the same model and tokens."""

from __future__ import annotations

from deploy.bench.result import BenchResult, hardware_name, spread, versions
from deploy.bench.study import load_average, median_ratio, run_study

MIN_RATIO = 0.95


def bench_learner() -> BenchResult:
    """Measure; the ratio is the learner's tokens a second over the bare step's."""
    figures = run_study("learner.studies.step_study")
    seconds = figures.pop("seconds")
    ratio = median_ratio(seconds, "bare", "learner")
    return BenchResult(
        name="learner",
        ratio=ratio,
        goal=f">= {MIN_RATIO:g} of a bare training step",
        passed=ratio >= MIN_RATIO,
        baseline="forward, cross-entropy, backward and AdamW on the same packed microbatches",
        hardware=hardware_name(),
        details={
            **figures,
            **{f"{name}_processor_time": spread(values) for name, values in seconds.items()},
            "tokens_per_processor_second": {
                name: figures["num_tokens"] / spread(values)["median_s"]
                for name, values in seconds.items()
            },
            "load_average": load_average(),
            "gpu": "not measured",
            "versions": versions("torch", "transformers"),
        },
    )
