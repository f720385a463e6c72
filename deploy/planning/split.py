"""The best split of a cluster, by trying them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.errors import ConfigError
from deploy.planning.forecast import Forecast, Splitting, forecast
from deploy.planning.memory import least_ranks, rank_memory
from deploy.planning.problem import Problem

CLUSTERS = (8, 64, 512, 4_096, 10_000)
"""GPUs that every plan is also made for."""
ENOUGH_RATIO = 0.9
_MOST_DOUBLINGS = 14
_COARSE = 24
"""Splits tried first; then those around the best of them, each time finer."""
_NARROWER = 6
_SAME = 1.01
"""Steps that differ by less are no reason for a lopsided split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The best split of one number of GPUs."""

    gpus: int
    groups_per_step: int
    best: Forecast | None
    """None where the model does not fit so few."""
    enough_groups: int
    """``groups_per_step`` that is large enough: the fewest doublings with which
    :data:`ENOUGH_RATIO` of what the largest batch keeps busy is busy.
    """
    enough: Forecast | None
    """The best split with that batch."""


def min_ranks(problem: Problem) -> int | None:
    """The fewest learner ranks that fit beside one engine; None if none do."""
    most = problem.cluster.cluster.gpus - 1
    longest = problem.config.model.max_length
    return least_ranks(problem.model, problem.config.learner, longest, problem.rank_room, most)


def best_split(problem: Problem) -> Forecast:
    """The split of all GPUs with the shortest step; of nearly equal ones the most even one.

    Raises :class:`ConfigError` when learner and engine do not fit.
    """
    check_engine(problem)
    least = min_ranks(problem)
    if least is None:
        raise learner_does_not_fit(problem)
    gpus = problem.cluster.cluster.gpus
    parallel = problem.config.learner.context_parallel
    node = problem.cluster.cluster.gpus_per_node
    counts = [ranks for ranks in _rank_counts(least, gpus, node) if ranks % parallel == 0]
    stride = max(1, len(counts) // _COARSE)
    best = _best_of(problem, counts[::stride])
    while stride > 1:
        place, narrower = counts.index(best.num_ranks), max(1, stride // _NARROWER)
        around = counts[max(0, place - stride) : place + stride + 1 : narrower]
        best = _best_of(problem, sorted({*around, best.num_ranks}))
        stride = narrower
    return best


def _best_of(problem: Problem, rank_counts: Sequence[int]) -> Forecast:
    gpus, shortest = problem.cluster.cluster.gpus, math.inf
    tried: list[Forecast] = []
    for num_ranks in rank_counts:
        split = Splitting(problem, gpus - num_ranks, num_ranks)
        if split.floor_s > shortest * _SAME:
            continue  # it cannot win, and looking closer is what takes time
        found = forecast(problem, gpus - num_ranks, num_ranks)
        shortest = min(shortest, found.step_s)
        tried.append(found)
    return min(
        (found for found in tried if found.step_s <= shortest * _SAME),
        key=lambda found: (max(found.actor_idle_ratio, found.learner_idle_ratio), found.step_s),
    )


def check_engine(problem: Problem) -> None:
    """Raise :class:`ConfigError` when an engine cannot run one longest sequence."""
    longest = problem.config.model.max_length
    if problem.room.longest_sequences(longest) < 1:
        gpu = problem.cluster.cluster
        raise ConfigError(
            f"an engine must hold the weights and one sequence of model.max_length ({longest}) in "
            f"actor.gpu_memory_ratio ({problem.config.actor.gpu_memory_ratio:g}) of one {gpu.gpu}: "
            f"weights {problem.weight_bytes / 1e9:.1f} GB, left for the KV cache "
            f"{problem.room.kv_room / 1e9:.1f} GB (an engine has one GPU: take one with more "
            'memory, model.dtype = "bfloat16", or a larger actor.gpu_memory_ratio)'
        )


def learner_does_not_fit(problem: Problem) -> ConfigError:
    """Why no split exists, with the largest parts of a rank's memory."""
    most = problem.cluster.cluster.gpus - 1
    learner = problem.config.learner
    memory = rank_memory(problem.model, learner, most, problem.config.model.max_length)
    states = memory.weights + memory.gradients + memory.moments + memory.reference
    return ConfigError(
        f"a learner rank must fit {problem.rank_room / 1e9:.0f} GB, but with {most} of "
        f"{most + 1} GPUs it needs {memory.total / 1e9:.0f} GB: {states / 1e9:.0f} of states, "
        f"{memory.activations / 1e9:.0f} of activations, {memory.gathered / 1e9:.0f} gathered, "
        f"{memory.head / 1e9:.0f} for the head (more GPUs shrink the states only; set "
        'learner.activation_checkpointing = "full", a smaller learner.microbatch_tokens or '
        "model.max_length, or learner.offload_optimizer = true)"
    )


def scales(problem: Problem, gpus: tuple[int, ...] = CLUSTERS) -> Iterator[Scale]:
    """The best split for each number of GPUs, with the batch as it is and as it should be."""
    groups = problem.config.learner.groups_per_step
    for count in gpus:
        larger = problem.with_cluster(problem.cluster.with_gpus(count))
        if min_ranks(larger) is None:
            yield Scale(
                gpus=count, groups_per_step=groups, best=None, enough_groups=groups, enough=None
            )
            continue
        enough_groups, enough = _enough_groups(larger)
        yield Scale(
            gpus=count,
            groups_per_step=groups,
            best=best_split(larger),
            enough_groups=enough_groups,
            enough=enough,
        )


def _enough_groups(problem: Problem) -> tuple[int, Forecast]:
    """By bisection over the doublings: the larger the batch, the less the bound matters."""
    groups = problem.config.learner.groups_per_step
    low, high = 0, _MOST_DOUBLINGS
    enough = best_split(problem.with_learner(groups_per_step=groups * 2**high))
    wanted = ENOUGH_RATIO * enough.busy_ratio
    while low < high:
        middle = (low + high) // 2
        found = best_split(problem.with_learner(groups_per_step=groups * 2**middle))
        if found.busy_ratio >= wanted:
            high, enough = middle, found
        else:
            low = middle + 1
    return groups * 2**high, enough


def _rank_counts(least: int, gpus: int, node: int) -> list[int]:
    """Ranks to try: every number within a machine, whole machines above; one GPU is an actor's."""
    within = range(least, min(gpus, node + 1))
    machines = range(-(-least // node) * node, gpus, node)
    counts = {*within, *machines} or set(range(least, gpus))
    return sorted(counts)
