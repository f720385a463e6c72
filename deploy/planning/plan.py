"""A whole plan: the chosen split and everything that is said about it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from common.config import Config
from deploy.planning.advice import Sensitivity, fitted, sensitivities, settings, warnings
from deploy.planning.architecture import Architecture
from deploy.planning.cluster import Cluster
from deploy.planning.forecast import Forecast, forecast
from deploy.planning.load import Load, load_of
from deploy.planning.memory import RankMemory, rank_memory
from deploy.planning.problem import Problem, make_problem
from deploy.planning.split import CLUSTERS, Scale, best_split, min_ranks, scales

_RATIOS = ("steps_per_hour", "tokens_per_s", "in_flight", "actor_idle_ratio")
_DERIVED = (*_RATIOS, "learner_idle_ratio", "busy_ratio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What ``headrace plan`` prints."""

    problem: Problem
    best: Forecast
    as_written: Forecast | None
    """The split of the run file, if it has so few processes and fits."""
    least_ranks: int
    memory: RankMemory
    load: Load
    warnings: list[str]
    settings: dict[str, object]
    scales: list[Scale]
    sensitivities: list[Sensitivity]


def make_plan(config: Config, cluster: Cluster, model: Architecture) -> Plan:
    """Raises :class:`common.errors.ConfigError` when there is no split that fits."""
    problem, changed = fitted(make_problem(config, cluster, model))
    best = best_split(problem)
    load = load_of(problem, best)
    gpus = cluster.cluster.gpus
    least = min_ranks(problem) or best.num_ranks
    return Plan(
        problem=problem,
        best=best,
        as_written=_as_written(problem, least),
        least_ranks=least,
        memory=rank_memory(
            problem.model, problem.config.learner, best.num_ranks, config.model.max_length
        ),
        load=load,
        warnings=warnings(problem, best, load),
        settings=settings(problem, best, load, changed),
        scales=list(scales(problem, tuple(sorted({*CLUSTERS, gpus})))),
        sensitivities=sensitivities(problem, best),
    )


def _as_written(problem: Problem, least: int) -> Forecast | None:
    actors, ranks = problem.config.actor.count, problem.config.learner.num_ranks
    if ranks < least or actors + ranks > problem.cluster.cluster.gpus:
        return None
    return forecast(problem, actors, ranks)


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as one object: seconds, bytes, shares and counts, under the names of the model."""
    problem = plan.problem
    room, gpu = problem.room, problem.cluster.gpu
    return {
        "model": {
            "parameters": problem.model.num_parameters,
            "active_body_parameters": problem.model.active_body,
            "weight_bytes": problem.weight_bytes,
        },
        "cluster": dataclasses.asdict(problem.cluster) | {"gpu": dataclasses.asdict(gpu)},
        "lengths": {
            "mean_tokens": problem.lengths.mean,
            "tail_ratio": problem.kappa,
            "truncated_ratio": problem.lengths.truncated_ratio,
        },
        "best": forecast_json(plan.best),
        "as_written": forecast_json(plan.as_written) if plan.as_written else None,
        "memory": {
            "least_ranks": plan.least_ranks,
            "rank": dataclasses.asdict(plan.memory) | {"total": plan.memory.total},
            "rank_room": problem.rank_room,
            "engine": dataclasses.asdict(room)
            | {
                "mean_context": room.mean_context,
                "sequences": room.sequences,
                "longest_sequences": room.longest_sequences(problem.config.model.max_length),
            },
        },
        "publication": publication_json(plan),
        "load": dataclasses.asdict(plan.load),
        "warnings": plan.warnings,
        "settings": plan.settings,
        "scales": [_scale_json(scale) for scale in plan.scales],
        "sensitivities": [dataclasses.asdict(item) for item in plan.sensitivities],
    }


def publication_json(plan: Plan) -> dict[str, float]:
    """Stages of the best split, their sums, and the bytes a sparse delta would have."""
    stages = plan.best.publication
    return {
        **dataclasses.asdict(stages),
        "background_s": stages.background_s,
        "total_s": stages.total_s,
        "delta_bytes": plan.problem.weight_bytes * plan.problem.cluster.assumed.delta_ratio,
    }


def forecast_json(found: Forecast) -> dict[str, Any]:
    """Fields and what follows from them; the stages of the publication stand elsewhere."""
    fields = dataclasses.asdict(found)
    del fields["publication"]
    return fields | {name: getattr(found, name) for name in _DERIVED}


def _scale_json(scale: Scale) -> dict[str, Any]:
    return {
        "gpus": scale.gpus,
        "groups_per_step": scale.groups_per_step,
        "best": forecast_json(scale.best) if scale.best else None,
        "enough_groups": scale.enough_groups,
        "enough": forecast_json(scale.enough) if scale.enough else None,
    }
