"""A plan as text for a terminal: the answer first, then why."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import TextWrapper

import tomli_w

from deploy.planning import measured
from deploy.planning.advice import cure
from deploy.planning.forecast import Forecast
from deploy.planning.plan import Plan
from deploy.planning.split import Scale

_GIGA = 1e9
_WIDTH = 100
_MOST_ASSUMPTIONS = 6
_LEAST_CHANGE = 0.0005


def to_text(plan: Plan) -> str:
    """Some fifty lines of at most a hundred characters; warnings are as long as they are."""
    parts = (
        _answer(plan),
        _section("Set in the run file", _settings(plan)),
        _section("Processes", _processes(plan)),
        _section("Warnings", _wrapped(plan.warnings)),
        _section("A step, each part as if alone", _step(plan)),
        _section("Memory of a learner rank and of an engine", _memory(plan)),
        _section("One publication", _publication(plan)),
        _section("Verifiers, broker, stores", _load(plan)),
        _section("The same run file on other clusters, best split of each", _scales(plan)),
        _section("Steps an hour if an assumption is 10% larger", _sensitivities(plan)),
        ["", "A model, not a measurement: replace assumptions by what the first steps show."],
    )
    return "\n".join(line for part in parts for line in part)


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in lines)] if lines else []


def _answer(plan: Plan) -> list[str]:
    best, hardware = plan.best, plan.problem.cluster.cluster
    size = plan.problem.model.num_parameters / 1e9
    kind = plan.problem.model.model_type
    lag = plan.problem.config.learner.max_policy_lag
    rows = [
        ("split", f"{best.num_actors:,} GPUs for actors, {best.num_ranks:,} for the learner"),
        (
            "speed",
            f"{best.steps_per_hour:,.1f} steps an hour, {best.step_s:,.1f} s each, "
            f"{best.tokens_per_s:,.0f} answer tokens a second",
        ),
        ("limit", f"{best.bottleneck}: {_idle(best)}"),
        ("lag", f"mean {best.mean_lag:.1f} of at most {lag} steps, {_needed(best)}"),
        *_busy(plan),
        *_as_written(plan),
        ("faster", cure(plan.problem, best)),
    ]
    head = f"{size:.2f}B parameters ({kind}) on {hardware.gpus:,} {hardware.gpu}"
    return [head, *(f"  {name:<8}{text}" for name, text in rows)]


def _wrapped(lines: Sequence[str]) -> list[str]:
    wrap = TextWrapper(width=_WIDTH - 2, initial_indent="- ", subsequent_indent="  ")
    return [part for line in lines for part in wrap.wrap(line)]


def _idle(found: Forecast) -> str:
    return f"actors idle {found.actor_idle_ratio:.0%}, learner idle {found.learner_idle_ratio:.0%}"


def _needed(found: Forecast) -> str:
    return f"a bound of {found.needed_lag} would cost nothing"


def _busy(plan: Plan) -> list[tuple[str, str]]:
    """What batch the cluster is large enough for, where this one leaves it idle."""
    own = next(scale for scale in plan.scales if scale.gpus == plan.problem.cluster.cluster.gpus)
    used = f"{plan.best.busy_ratio:.0%} of the GPUs' time"
    if own.enough is None or own.enough_groups == own.groups_per_step:
        return [("busy", f"{used}; the batch is large enough")]
    times = own.enough.rollouts_per_step // plan.best.rollouts_per_step
    return [
        ("busy", f"{used}; learner.groups_per_step = {own.enough_groups:,} ({times}x) would use"),
        (
            "",
            f"{own.enough.busy_ratio:.0%}: {own.enough.num_actors:,} + {own.enough.num_ranks:,}, "
            f"{own.enough.steps_per_hour:,.1f} steps an hour, "
            f"{own.enough.tokens_per_s:,.0f} tokens a second",
        ),
    ]


def _as_written(plan: Plan) -> list[tuple[str, str]]:
    """What the file's own split comes to, where it is another one."""
    found, best = plan.as_written, plan.best
    if found is None or (found.num_actors, found.num_ranks) == (best.num_actors, best.num_ranks):
        return []
    split = f"{found.num_actors:,} + {found.num_ranks:,}"
    return [("file", f"{split} as it says: {found.steps_per_hour:,.1f} steps an hour")]


def _settings(plan: Plan) -> list[str]:
    tables: dict[str, dict[str, object]] = {}
    for dotted, value in plan.settings.items():
        section, _, key = dotted.partition(".")
        tables.setdefault(section, {})[key] = value
    lines = tomli_w.dumps(tables).splitlines()
    return [line for line in lines if line]


def _processes(plan: Plan) -> list[str]:
    """Commands for a cluster of several machines; one machine needs none but headrace run."""
    hardware, best = plan.problem.cluster.cluster, plan.best
    if hardware.gpus <= hardware.gpus_per_node:
        return []
    ranks = min(best.num_ranks, hardware.gpus_per_node)
    machines = -(-best.num_ranks // ranks)
    nodes = f"--nnodes {machines} " if machines > 1 else ""
    return [
        f"torchrun {nodes}--nproc-per-node {ranks} --no-python headrace learner FILE",
        f"headrace actor FILE --name actor-N    # {best.num_actors:,} of them, a GPU each",
    ]


def _step(plan: Plan) -> list[str]:
    best, kappa = plan.best, plan.problem.kappa
    mean = plan.problem.lengths.mean
    return [
        f"generation {best.generate_s:>10,.1f} s   {best.rollouts_per_step:,} answers of "
        f"{mean:,.0f} tokens, {best.full_tokens_per_s:,.0f} tokens/s an engine",
        f"training   {best.train_s:>10,.1f} s   {_train_rate(plan):,.0f} tokens/s a rank",
        f"lag bound  {best.bound_s:>10,.1f} s   an answer takes {best.latency_s:,.0f} s, the "
        f"longest of a group {kappa:.1f} times as long",
        f"publishing {best.publication.background_s:>10,.1f} s   beside the others",
        f"in flight: {best.in_flight:,.0f} answers, {best.sequences:,.0f} an engine of "
        f"{best.capacity:,} that it could run",
    ]


def _train_rate(plan: Plan) -> float:
    trained = plan.problem.trainer.tokens_per_step
    return trained / (plan.best.train_s * plan.best.num_ranks)


def _memory(plan: Plan) -> list[str]:
    memory, room, problem = plan.memory, plan.problem.room, plan.problem
    states = memory.weights + memory.gradients + memory.moments + memory.reference
    longest = problem.config.model.max_length
    return [
        f"rank    {memory.total / _GIGA:.1f} of {problem.rank_room / _GIGA:.1f} GB: states "
        f"{states / _GIGA:.1f}, activations {memory.activations / _GIGA:.1f}, gathered "
        f"{memory.gathered / _GIGA:.1f}, head {memory.head / _GIGA:.1f}; at least "
        f"{plan.least_ranks} rank{'s' if plan.least_ranks > 1 else ''}",
        f"engine  weights {room.weights / _GIGA:.1f} GB, KV cache {room.kv_room / _GIGA:.1f} GB: "
        f"{room.sequences:,} sequences of {room.mean_context:,.0f} tokens, "
        f"{room.longest_sequences(longest):,} of {longest:,}",
    ]


def _publication(plan: Plan) -> list[str]:
    stages, problem = plan.best.publication, plan.problem
    delta = problem.weight_bytes * problem.cluster.assumed.delta_ratio
    return [
        f"{problem.weight_bytes / _GIGA:.2f} GB in {stages.total_s:.1f} s: snapshot "
        f"{stages.snapshot_s:.2f}, gather {stages.gather_s:.1f}, write {stages.write_s:.1f}, send "
        f"{stages.send_s:.1f}, load {stages.load_s:.1f}",
        f"the learner waits for the snapshot, engines for the load; a sparse delta would be "
        f"{delta / _GIGA:.2f} GB",
    ]


def _load(plan: Plan) -> list[str]:
    load = plan.load
    stores = f"{load.stores} stores" if load.stores else "the broker carries them"
    return [
        f"{load.rollouts_per_s:,.2f} rollouts/s; verifier workers: {load.verifier_workers:,}, or "
        f"{load.code_workers:,} if every answer is a short program",
        f"{load.messages_per_s:,.1f} messages/s, {load.broker_used_ratio:.2%} of what one broker "
        "does",
        f"{load.megabytes_per_s:,.2f} MB/s of arrays: {stores}",
        f"measured here, on two cores: {measured.BROKER_MESSAGES.value:,.0f} "
        f"{measured.BROKER_MESSAGES.unit},",
        f"  {measured.BROKER_MEGABYTES.value:,.0f} {measured.BROKER_MEGABYTES.unit}, "
        f"{measured.STORE_MEGABYTES.value:,.0f} {measured.STORE_MEGABYTES.unit},",
        f"  {measured.MATH_VERDICTS.value:,.0f} {measured.MATH_VERDICTS.unit}, "
        f"{measured.CODE_EXECUTIONS.value:,.0f} {measured.CODE_EXECUTIONS.unit}",
    ]


def _scales(plan: Plan) -> list[str]:
    head = (
        f"{'GPUs':>6} {'actors':>7} {'learner':>7} {'steps/h':>8} {'lag':>4} {'idle a/l':>9}  "
        f"{'limit':<11} a batch large enough"
    )
    return [head, *(_scale_line(scale) for scale in plan.scales)]


def _scale_line(scale: Scale) -> str:
    best = scale.best
    if best is None:
        return f"{scale.gpus:>6,} too few: the learner does not fit"
    idle = f"{best.actor_idle_ratio:.0%}/{best.learner_idle_ratio:.0%}"
    return (
        f"{scale.gpus:>6,} {best.num_actors:>7,} {best.num_ranks:>7,} {best.steps_per_hour:>8,.1f} "
        f"{best.mean_lag:>4.1f} {idle:>9}  {best.bottleneck:<11} {_enough(scale)}"
    )


def _enough(scale: Scale) -> str:
    if scale.enough is None or scale.enough_groups == scale.groups_per_step:
        return "as it is"
    return (
        f"{scale.enough_groups:,} groups: {scale.enough.num_actors:,} + "
        f"{scale.enough.num_ranks:,}, {scale.enough.steps_per_hour:,.1f}/h"
    )


def _sensitivities(plan: Plan) -> list[str]:
    shown = [item for item in plan.sensitivities if abs(item.change) >= _LEAST_CHANGE]
    return [
        f"{item.change:+6.1%}  {item.name} = {item.value:g}" for item in shown[:_MOST_ASSUMPTIONS]
    ]
