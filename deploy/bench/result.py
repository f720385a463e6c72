"""What a benchmark says: one ratio, its goal, and everything needed to doubt it."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """One benchmark of one run on one machine."""

    name: str
    ratio: float
    """The figure of the benchmark, in its own sense."""
    goal: str
    passed: bool
    baseline: str
    """What the ratio is against, in words."""
    hardware: str
    details: dict[str, object] = field(default_factory=dict)
    """Numerator, denominator, spread, versions."""


def hardware_name() -> str:
    """Processor, usable cores and memory of this machine."""
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{_processor()}, {cores} cores, {memory_gib:.0f} GiB"


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, of this commit and of ``packages``."""
    found = {"python": platform.python_version(), "commit": _commit()}
    return found | {name: metadata.version(name) for name in packages}


def interleaved_seconds(
    workloads: dict[str, Callable[[], object]], *, repeats: int, inner: int
) -> dict[str, list[float]]:
    """Seconds per call of each workload, the workloads taking turns so that drift hits all alike.

    One untimed round warms up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in workloads}
    for turn in range(repeats + 1):
        for name, work in workloads.items():
            start = time.perf_counter()
            for _ in range(inner):
                work()
            if turn:
                seconds[name].append((time.perf_counter() - start) / inner)
    return seconds


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {
        "min_s": min(seconds),
        "median_s": statistics.median(seconds),
        "max_s": max(seconds),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: the platform's own name has to do
    return platform.processor() or platform.machine()


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
