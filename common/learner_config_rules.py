"""Rules for how the learner computes and steps: schedules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from common.config import Config, LearnerConfig, SftConfig
from common.mixture import read_mixture


def learner_rules(config: Config) -> Iterator[str]:
    """What is wrong with the settings of ``[learner]`` and ``[sft]``, each with its cure."""
    yield from _schedule_rules("learner", config.learner)
    yield from _schedule_rules("sft", config.sft)
    yield from _execution_rules(config.learner)
    if config.learner.router_replay:
        yield from _replay_rules(config)


def _execution_rules(settings: LearnerConfig) -> Iterator[str]:
    size = settings.context_parallel
    if size > 1 and settings.num_ranks % size:
        yield (
            f"learner.context_parallel must divide learner.num_ranks = {settings.num_ranks}, got "
            f"{size} (use 1, or set learner.num_ranks = {size * -(-settings.num_ranks // size)})"
        )
    mode = settings.activation_checkpointing
    if settings.offload_activations and mode != "full":
        yield (
            'learner.offload_activations needs learner.activation_checkpointing = "full", got '
            f'"{mode}" (then one tensor a layer travels; without, its weights would too)'
        )
    if settings.compile and mode == "selective":
        yield (
            'learner.compile does not go with learner.activation_checkpointing = "selective" (use '
            '"none": compiled layers compute cheap results again by themselves; or "full")'
        )


def _replay_rules(config: Config) -> Iterator[str]:
    settings = config.learner
    if config.actor.engine != "vllm":
        yield (
            'learner.router_replay needs actor.engine = "vllm", the only one that records experts, '
            f'got "{config.actor.engine}"'
        )
    has_config = (Path(config.model.path) / "config.json").is_file()
    if has_config and read_mixture(config.model.path) is None:
        yield (
            f"learner.router_replay needs a mixture of experts, and {config.model.path} has none "
            "(set learner.router_replay = false)"
        )
    if settings.compile:
        yield (
            "learner.router_replay does not go with learner.compile = true (set one of them to "
            "false: a compiled layer takes no record)"
        )


def _schedule_rules(section: str, settings: LearnerConfig | SftConfig) -> Iterator[str]:
    if not 0 <= settings.final_learning_rate_ratio <= 1:
        yield (
            f"{section}.final_learning_rate_ratio must be 0 to 1, got "
            f"{settings.final_learning_rate_ratio:g} (use 0.1, a tenth of the peak)"
        )
    if settings.warmup_steps < 0:
        yield (
            f"{section}.warmup_steps must be >= 0, got {settings.warmup_steps} (use 0 for no "
            "warm-up)"
        )
    if settings.schedule != "constant" and settings.warmup_steps >= settings.num_steps:
        yield (
            f"{section}.warmup_steps must be below {section}.num_steps = {settings.num_steps} for "
            f'the schedule "{settings.schedule}", got {settings.warmup_steps} (use a tenth of the '
            "steps)"
        )
