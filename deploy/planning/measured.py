"""What the project's own benchmarks measured, on two cores: the only figures called measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of a file in ``benchmarks/results``."""

    value: float
    unit: str
    benchmark: str
    """Name of the benchmark, with which its file begins."""
    key: str
    """Where in ``details`` it stands, dots between levels; the median where it is a list."""


MACHINE = "amd-epyc-2cores"
"""How the files of these figures end."""

BROKER_MESSAGES = Figure(
    value=11_287.9,
    unit="messages/s through whole lives of groups",
    benchmark="control",
    key="full_cycle_messages_per_second.median",
)
VERDICT_MESSAGES = Figure(
    value=45_788.4,
    unit="verdicts/s in batches",
    benchmark="control",
    key="broker_messages_per_second.median",
)
MESSAGES_PER_ROLLOUT = Figure(
    value=3.80,
    unit="messages a rollout with 10,000 actors",
    benchmark="fleet",
    key="messages_per_rollout.10000",
)
BROKER_MEGABYTES = Figure(
    value=172.67,
    unit="MB/s of rollouts through the broker",
    benchmark="broker",
    key="megabytes_per_second.broker_relaxed.median",
)
STORE_MEGABYTES = Figure(
    value=390.69,
    unit="MB/s of rollouts through one durable store",
    benchmark="broker",
    key="megabytes_per_second.store_durable.median",
)
MATH_VERDICTS = Figure(
    value=4_187.67,
    unit="math verdicts/s by two workers",
    benchmark="math",
    key="verdicts_per_s.headrace",
)
CODE_EXECUTIONS = Figure(
    value=250.56,
    unit="short programs/s by two workers",
    benchmark="code",
    key="executions_per_s",
)
FIGURES = (
    BROKER_MESSAGES,
    VERDICT_MESSAGES,
    MESSAGES_PER_ROLLOUT,
    BROKER_MEGABYTES,
    STORE_MEGABYTES,
    MATH_VERDICTS,
    CODE_EXECUTIONS,
)
NUM_WORKERS = 2
"""Workers of the two benchmarks of verdicts."""
