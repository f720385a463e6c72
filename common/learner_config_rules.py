"""Rules for how the learner computes and steps: schedules."""

from __future__ import annotations

from collections.abc import Iterator

from common.config import Config, LearnerConfig, SftConfig


def learner_rules(config: Config) -> Iterator[str]:
    """What is wrong with the settings of ``[learner]`` and ``[sft]``, each with its cure."""
    yield from _schedule_rules("learner", config.learner)
    yield from _schedule_rules("sft", config.sft)
    yield from _execution_rules(config.learner)


def _execution_rules(settings: LearnerConfig) -> Iterator[str]:
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
