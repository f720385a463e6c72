"""What a plan asks of verifiers, broker and stores, against what was measured of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.mixture import Mixture
from deploy.planning.forecast import Forecast
from deploy.planning.measured import (
    BROKER_MEGABYTES,
    BROKER_MESSAGES,
    CODE_EXECUTIONS,
    MESSAGES_PER_ROLLOUT,
    NUM_WORKERS,
    STORE_MEGABYTES,
)
from deploy.planning.problem import Problem

MOST_USED = 0.7
"""Verification must never gate the learner, and queues grow without end near 1."""
_BROKER_SHARE = 0.5
"""Above this share of its measured byte rate the broker should not carry arrays."""
_READERS = 2
"""A verifier and a learner rank each fetch every rollout; experts go to the rank alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Rates a second, and what carries them."""

    rollouts_per_s: float
    verifier_workers: int
    """Of the kind in ``[workload]``, busy at most :data:`MOST_USED`."""
    code_workers: int
    """The same if every answer were a program."""
    messages_per_s: float
    broker_used_ratio: float
    """Share of the measured message rate."""
    rollout_bytes: float
    """A mean rollout: ids, log-probabilities, and experts where they are recorded."""
    megabytes_per_s: float
    """Fetched."""
    stores: int
    """Stores that the bytes need; 0: the broker carries them."""
    step_bytes: float
    """Arrays of one batch of mean rollouts."""


def load_of(problem: Problem, found: Forecast) -> Load:
    """The load of a forecast."""
    mean, prompt = problem.lengths.mean, problem.cluster.workload.prompt_tokens
    arrays = 4 * (prompt + 2 * mean)
    experts = _expert_bytes(problem) * (prompt + mean)
    rollout_bytes = arrays + experts
    megabytes = found.rollouts_per_s * (_READERS * arrays + experts) / 1e6
    messages = found.rollouts_per_s * MESSAGES_PER_ROLLOUT.value
    return Load(
        rollouts_per_s=found.rollouts_per_s,
        verifier_workers=_workers(found.rollouts_per_s, problem.verify_s),
        code_workers=_workers(found.rollouts_per_s, NUM_WORKERS / CODE_EXECUTIONS.value),
        messages_per_s=messages,
        broker_used_ratio=messages / BROKER_MESSAGES.value,
        rollout_bytes=rollout_bytes,
        megabytes_per_s=megabytes,
        stores=_stores(megabytes),
        step_bytes=rollout_bytes * found.rollouts_per_step,
    )


def _expert_bytes(problem: Problem) -> int:
    """Of the record of one token's experts under ``learner.router_replay``."""
    model = problem.model
    if not problem.config.records_experts or not model.num_experts:
        return 0
    return Mixture(model.num_layers, model.num_experts, model.experts_per_token).record_bytes


def _workers(per_s: float, seconds: float) -> int:
    return max(1, math.ceil(per_s * seconds / MOST_USED))


def _stores(megabytes_per_s: float) -> int:
    if megabytes_per_s <= _BROKER_SHARE * BROKER_MEGABYTES.value:
        return 0
    return math.ceil(megabytes_per_s / (MOST_USED * STORE_MEGABYTES.value))
