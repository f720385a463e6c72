"""B19: scoring through the verifier's model backend, against a bare forward of the same model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from common.errors import FatalError
from deploy.bench.result import BenchResult, hardware_name, spread, versions

MIN_RATIO = 0.90
_MODULE = "actors.verification.models.throughput"


def bench_reward_model() -> BenchResult:
    """Measure; the ratio is the backend's tokens a second over the bare forward's."""
    figures = _run()
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


def _run() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", _MODULE],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:]
        raise FatalError(f"the benchmark of scoring models failed: {' '.join(last)}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures
