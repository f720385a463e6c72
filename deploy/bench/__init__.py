"""Benchmarks: each a ratio against a named baseline measured in the same run."""

from __future__ import annotations

from collections.abc import Callable

from deploy.bench.attention import bench_attention
from deploy.bench.broker import bench_broker
from deploy.bench.checkpoint import bench_checkpoint
from deploy.bench.code import bench_code
from deploy.bench.codec import bench_codec
from deploy.bench.control import bench_control
from deploy.bench.fleet import bench_fleet
from deploy.bench.head import bench_head
from deploy.bench.latency import bench_latency
from deploy.bench.learner import bench_learner
from deploy.bench.math_answers import bench_math
from deploy.bench.packing import bench_packing
from deploy.bench.pipeline import bench_pipeline
from deploy.bench.result import BenchResult
from deploy.bench.reward_model import bench_reward_model
from deploy.bench.scheduler import bench_scheduler
from deploy.bench.staleness import bench_staleness
from deploy.bench.trl import bench_trl

BENCHMARKS: dict[str, Callable[[], BenchResult]] = {
    "attention": bench_attention,
    "broker": bench_broker,
    "checkpoint": bench_checkpoint,
    "code": bench_code,
    "codec": bench_codec,
    "control": bench_control,
    "head": bench_head,
    "latency": bench_latency,
    "learner": bench_learner,
    "math": bench_math,
    "packing": bench_packing,
    "pipeline": bench_pipeline,
    "reward-model": bench_reward_model,
    "staleness": bench_staleness,
    "scheduler": bench_scheduler,
    "fleet": bench_fleet,
    "trl": bench_trl,
}
"""Name -> function that measures and returns the result."""
