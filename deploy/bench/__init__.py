"""Benchmarks: each a ratio against a named baseline measured in the same run."""

from __future__ import annotations

from collections.abc import Callable

from deploy.bench.codec import bench_codec
from deploy.bench.pipeline import bench_pipeline
from deploy.bench.result import BenchResult

BENCHMARKS: dict[str, Callable[[], BenchResult]] = {
    "codec": bench_codec,
    "pipeline": bench_pipeline,
}
"""Name -> function that measures and returns the result."""
