"""How long training stands still for a checkpoint that is written in the background."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from deploy.bench.result import BenchResult, hardware_name, spread, versions
from deploy.bench.study import load_average, median_ratio, run_study

MAX_RATIO = 0.2


def bench_checkpoint() -> BenchResult:
    """Measure; the ratio is the stall over a synchronous checkpoint's time, lower is better."""
    return result_of(run_study("learner.studies.checkpoint_study"))


def result_of(figures: Mapping[str, Any]) -> BenchResult:
    """The verdict on the figures of the study."""
    seconds: dict[str, Sequence[float]] = {
        name: figures[name] for name in ("stalled_s", "written_s", "synchronous_s", "plain_s")
    }
    ratio = median_ratio(seconds, "stalled_s", "synchronous_s")
    num_bytes = figures["num_bytes"]
    return BenchResult(
        name="checkpoint",
        ratio=ratio,
        goal=f"training stands still for <= {MAX_RATIO:g} of a synchronous checkpoint",
        passed=ratio <= MAX_RATIO,
        baseline="the same files, with the loop waiting until the checkpoint has its name",
        hardware=hardware_name(),
        details={
            "num_bytes": num_bytes,
            "num_parameters": figures["num_parameters"],
            **{name.removesuffix("_s"): spread(taken) for name, taken in seconds.items()},
            "bytes_per_second": {
                name.removesuffix("_s"): num_bytes / statistics.median(seconds[name])
                for name in ("stalled_s", "synchronous_s", "plain_s")
            },
            "synchronous_over_plain": median_ratio(seconds, "synchronous_s", "plain_s"),
            "a_checkpoint_is": "written, synced, read back, checked; plain is written and synced",
            "slow_down_of_the_loop_while_writing": statistics.median(figures["slow_down"]),
            "measured_as": "wall time, on the disk of the system's temporary folder",
            "load_average": load_average(),
            "gpu": "not measured",
            "versions": versions("torch", "safetensors"),
        },
    )
