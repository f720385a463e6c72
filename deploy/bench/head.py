"""B15: memory and time of the log-probability head against materialised logits."""

from __future__ import annotations

from deploy.bench.result import BenchResult, hardware_name, spread, versions
from deploy.bench.study import load_average, median_ratio, run_study

MAX_MEMORY_RATIO = 1 / 20
MAX_TIME_RATIO = 1.10
MAX_GRADIENT_ERROR = 1e-3


def bench_head() -> BenchResult:
    """Measure; the ratio is peak memory over that of materialised logits, lower is better."""
    figures = run_study("learner.studies.head_study")
    peaks, seconds = figures["peak_bytes"], figures.pop("seconds")
    ratio = peaks["chunked"] / peaks["materialised"]
    times = {
        size: median_ratio(taken, "chunked", "materialised") for size, taken in seconds.items()
    }
    narrowest = min(times, key=int)
    error = max(figures["gradient_error"].values())
    return BenchResult(
        name="head",
        ratio=ratio,
        goal=(
            f"<= {MAX_MEMORY_RATIO:g} of the memory and <= {MAX_TIME_RATIO:g} of the time of "
            f"materialised logits at width {narrowest}, gradients within {MAX_GRADIENT_ERROR:g}"
        ),
        passed=(
            ratio <= MAX_MEMORY_RATIO
            and times[narrowest] <= MAX_TIME_RATIO
            and error <= MAX_GRADIENT_ERROR
        ),
        baseline="torch's linear and cross_entropy, forward and backward, without the entropy",
        hardware=hardware_name(),
        details={
            "time_ratio_by_width": times,
            **figures,
            "processor_time_by_width": {
                size: {name: spread(values) for name, values in taken.items()}
                for size, taken in seconds.items()
            },
            "memory_measured_as": "VmHWM of a process of its own, above what was resident before",
            "load_average": load_average(),
            "gpu": "not measured",
            "versions": versions("torch"),
        },
    )
