"""What to change: warnings with a cure, keys to set, and the assumptions that matter most."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from common.config import LearnerConfig
from deploy.planning.forecast import Forecast, forecast
from deploy.planning.load import Load
from deploy.planning.problem import Problem
from deploy.planning.split import min_ranks

STEP_CHANGE = 0.1
"""Each assumption is raised by a tenth of itself."""
_SAVINGS: tuple[dict[str, object], ...] = (
    {"activation_checkpointing": "full"},
    {"optimizer_dtype": "bfloat16"},
    {"offload_optimizer": True},
)
"""In the order in which they cost: time, a little precision, the way to the host."""
_LONGEST_IN_ANSWER = 0.02


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Change of steps an hour when one assumption is a tenth larger, split as planned."""

    name: str
    value: float
    change: float
    """0.05: five percent more steps an hour."""


def fitted(problem: Problem) -> tuple[Problem, dict[str, object]]:
    """``problem`` with settings that a GPU cluster needs, and those alone, by dotted key.

    Weights go by NCCL, and of ``[learner]`` whatever makes a rank fit: nothing where it does, or
    where nothing helps.
    """
    weights = problem.config.weights
    by_nccl = weights.transfer == "group" and weights.backend == "gloo"
    prepared = problem.with_nccl() if by_nccl else problem
    fits, changed = _fitted_learner(prepared)
    learner = {f"learner.{key}": value for key, value in changed.items()}
    return fits, learner | ({"weights.backend": "nccl"} if by_nccl else {})


def _fitted_learner(problem: Problem) -> tuple[Problem, dict[str, object]]:
    changed: dict[str, object] = {}
    tried = problem
    for saving in _SAVINGS:
        if min_ranks(tried) is not None:
            return tried, changed
        if _goes_together(tried.config.learner, saving):
            changed |= saving
            tried = tried.with_learner(**saving)
    return (tried, changed) if min_ranks(tried) is not None else (problem, {})


def _goes_together(learner: LearnerConfig, saving: dict[str, object]) -> bool:
    return any(getattr(learner, key) != value for key, value in saving.items())


def warnings(problem: Problem, found: Forecast, load: Load) -> list[str]:
    """What would go wrong, each with its value and its cure."""
    return [
        *_bound_warnings(problem, found),
        *_engine_warnings(problem, found),
        *_publication_warnings(problem, found),
        *_load_warnings(problem, load),
        *_unplanned(problem),
    ]


def cure(problem: Problem, found: Forecast) -> str:
    """What makes steps shorter, by what limits them."""
    learner = problem.config.learner
    if found.bottleneck == "lag bound":
        return f"learner.max_policy_lag = {found.needed_lag}, or a larger learner.groups_per_step"
    if found.bottleneck == "publication":
        return f"{_slowest_stage(found)[1]}; or a larger learner.groups_per_step"
    if found.bottleneck == "training" and learner.activation_checkpointing == "full":
        return 'more GPUs, or less computed twice (learner.activation_checkpointing = "selective")'
    if found.bottleneck == "generation" and found.capacity == problem.config.actor.max_num_seqs:
        return f"more GPUs, or more than actor.max_num_seqs = {found.capacity} sequences an engine"
    return "more GPUs, or GPUs with more memory bandwidth"


def _slowest_stage(found: Forecast) -> tuple[str, str]:
    """Name and cure of the longest stage in the background of a publish."""
    cures = {
        "gather": "fewer learner ranks, or a faster way through host memory",
        "write": "run.directory on a faster disk",
        "send": 'weights.backend = "nccl" and weights.transfer = "group"',
    }
    longest = max(cures, key=lambda name: float(getattr(found.publication, f"{name}_s")))
    return longest, cures[longest]


def _bound_warnings(problem: Problem, found: Forecast) -> Iterator[str]:
    learner = problem.config.learner
    if found.bottleneck == "lag bound":
        ideal = max(found.generate_s, found.train_s, found.publication.background_s)
        yield (
            f"learner.max_policy_lag = {learner.max_policy_lag} is too tight for answers of "
            f"{problem.lengths.mean:,.0f} tokens: a group takes "
            f"{problem.kappa * found.latency_s:,.0f} s and a step would take {ideal:,.0f} s "
            f"(set {found.needed_lag}, or a larger learner.groups_per_step; in simulation the real "
            "scheduler is up to a quarter slower still where the bound binds)"
        )
    outstanding = (learner.max_policy_lag + 1) * problem.config.rollouts_per_step
    slots = found.num_actors * found.capacity
    if slots > outstanding:
        yield (
            f"the broker admits {outstanding:,} rollouts at once, (max_policy_lag + 1) x "
            f"rollouts a step, but the engines could run {slots:,} (a larger "
            "learner.groups_per_step, or fewer actors)"
        )


def _engine_warnings(problem: Problem, found: Forecast) -> Iterator[str]:
    wanted = problem.config.actor.max_num_seqs
    if found.capacity < wanted:
        yield (
            f"the KV cache holds {found.capacity:,} sequences of "
            f"{problem.room.mean_context:,.0f} tokens, fewer than actor.max_num_seqs = {wanted} "
            f"(set {found.capacity:,}: more would be preempted and computed again)"
        )
    if problem.lengths.truncated_ratio > _LONGEST_IN_ANSWER:
        yield (
            f"{problem.lengths.truncated_ratio:.0%} of the answers would be cut off at "
            f"actor.max_tokens = {problem.config.actor.max_tokens} and judged wrong (raise it, "
            "with model.max_length)"
        )


def _publication_warnings(problem: Problem, found: Forecast) -> Iterator[str]:
    stages, weights = found.publication, problem.config.weights
    if stages.background_s > 0.5 * found.step_s:
        longest, cure_of_it = _slowest_stage(found)
        relation = "as long as" if stages.background_s >= found.step_s else "more than half of"
        yield (
            f"a publication takes {stages.background_s:,.1f} s, {relation} a step of "
            f"{found.step_s:,.1f} s, {getattr(stages, f'{longest}_s'):,.1f} s of it in {longest} "
            f"({cure_of_it})"
        )
    if stages.send_s > weights.deadline_s:
        yield (
            f"sending weights takes {stages.send_s:,.0f} s, longer than weights.deadline_s = "
            f"{weights.deadline_s:g} (set {2 * stages.send_s:.0f})"
        )
    if stages.load_s > 0.05 * found.step_s:
        yield (
            f"engines stand still {stages.load_s:,.1f} s of each step of {found.step_s:,.1f} s to "
            "load weights (a larger learner.groups_per_step makes steps longer)"
        )


def _load_warnings(problem: Problem, load: Load) -> Iterator[str]:
    if load.broker_used_ratio > 0.7:
        yield (
            f"the broker would handle {load.messages_per_s:,.0f} messages/s, "
            f"{load.broker_used_ratio:.0%} of what was measured on two cores (run it on faster "
            "cores, or sample longer answers)"
        )
    stores = problem.config.stores
    kept = problem.config.max_outstanding_groups + (
        problem.config.learner.checkpoint_every * problem.config.learner.groups_per_step
    )
    num_bytes = kept * problem.config.learner.group_size * load.rollout_bytes
    if stores.payloads == "store" and num_bytes > stores.max_bytes * max(1, load.stores):
        yield (
            f"stores keep {num_bytes / 1e9:,.1f} GB until a checkpoint covers them, more than "
            f"stores.max_bytes = {stores.max_bytes} each (raise it, or checkpoint more often)"
        )


def _unplanned(problem: Problem) -> Iterator[str]:
    config = problem.config
    if config.verifier.models:
        yield "models of [verifier.models] are not planned (give them GPUs of their own)"
    if config.learner.loss.baseline == "critic":
        yield "the critic is not planned (its training state is as large again as the policy's)"
    if config.learner.dynamic_sampling:
        yield "learner.dynamic_sampling drops groups: sampling takes longer by the share dropped"


def settings(
    problem: Problem, found: Forecast, load: Load, changed: dict[str, object]
) -> dict[str, object]:
    """Dotted keys of the run file that differ from what the plan takes for set, with their values.

    Numbers of processes only where one machine is all: elsewhere each is started by itself.
    """
    config = problem.config
    hardware = problem.cluster.cluster
    wanted: dict[str, object] = {
        "actor.max_num_seqs": min(config.actor.max_num_seqs, found.capacity)
    }
    if hardware.gpus <= hardware.gpus_per_node:
        wanted |= {"learner.num_ranks": found.num_ranks, "actor.count": found.num_actors}
    if config.verifier.count * config.verifier.num_workers < load.verifier_workers:
        wanted["verifier.num_workers"] = -(-load.verifier_workers // config.verifier.count)
    if load.stores and (config.stores.payloads, config.stores.count) == ("broker", 1):
        wanted |= {"stores.payloads": "store", "stores.count": load.stores}
    return changed | {
        key: value for key, value in wanted.items() if _current(problem, key) != value
    }


def _current(problem: Problem, dotted: str) -> object:
    section, _, key = dotted.partition(".")
    return getattr(getattr(problem.config, section), key)


def sensitivities(problem: Problem, found: Forecast) -> list[Sensitivity]:
    """Every assumption a tenth larger, with the split as planned; what matters most comes first."""
    base = found.steps_per_hour
    changes = []
    for name, value, larger in _larger(problem):
        steps = forecast(larger, found.num_actors, found.num_ranks).steps_per_hour
        changes.append(Sensitivity(name, value, steps / base - 1))
    return sorted(changes, key=lambda item: (-abs(item.change), item.name))


def _larger(problem: Problem) -> Iterator[tuple[str, float, Problem]]:
    """(name, value, the problem with that value a tenth larger), as far as it can be."""
    cluster = problem.cluster
    values = {
        "workload.mean_tokens": problem.lengths.mean,
        "workload.prompt_tokens": cluster.workload.prompt_tokens,
        "workload.sigma": cluster.workload.sigma,
        "cluster.memory_gb_per_s": cluster.gpu.memory_gb_per_s,
        "cluster.tflops": cluster.gpu.tflops,
        "cluster.network_gb_per_s": cluster.cluster.network_gb_per_s,
        "cluster.disk_gb_per_s": cluster.cluster.disk_gb_per_s,
        "assumed.decode_ratio": cluster.assumed.decode_ratio,
        "assumed.mfu": cluster.assumed.mfu,
        "assumed.step_overhead_s": cluster.assumed.step_overhead_s,
        "assumed.gloo_gb_per_s": cluster.assumed.gloo_gb_per_s,
        "assumed.load_gb_per_s": cluster.assumed.load_gb_per_s,
    }
    for name, value in values.items():
        raised = _replaced(problem, name, value * (1 + STEP_CHANGE))
        if raised is not None:
            yield name, value, raised


def _replaced(problem: Problem, dotted: str, value: float) -> Problem | None:
    section, _, key = dotted.partition(".")
    longest = problem.config.actor.max_tokens
    room = problem.config.model.max_length - longest
    if (key == "mean_tokens" and value >= longest) or (key == "prompt_tokens" and value > room):
        return None
    table = dataclasses.replace(getattr(problem.cluster, section), **{key: value})
    return problem.with_cluster(dataclasses.replace(problem.cluster, **{section: table}))
