"""What follows from a run file before anything runs: lag, counts, sizes. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from common.config import Config
from common.weight_layout import DTYPE_BYTES

_TOKEN_BYTES = 8
"""An int32 id and a float32 log-probability for each completion token."""
_MASTER_AND_ADAM_BYTES = 16
"""Per parameter in the learner: float32 weight, gradient and two AdamW moments."""


@dataclass(frozen=True, slots=True)
class DerivedNumber:
    """One line of ``headrace check``."""

    name: str
    value: str
    why: str


def derived_numbers(config: Config, num_parameters: int | None) -> list[DerivedNumber]:
    """The figures of ``config``; those of the model only when its parameters could be counted."""
    if config.run.kind == "collect":
        numbers = _collect_numbers(config)
    else:
        numbers = _train_numbers(config)
    return numbers + (_model_numbers(config, num_parameters) if num_parameters else [])


def max_payload_bytes(config: Config) -> int:
    """Largest total of rollouts that the broker keeps before a checkpoint covers them."""
    learner = config.learner
    num_groups = config.max_outstanding_groups + learner.checkpoint_every * learner.groups_per_step
    return num_groups * learner.group_size * _TOKEN_BYTES * config.model.max_length


def count_parameters(header: Mapping[str, object]) -> int:
    """Elements of all tensors in the JSON header of a safetensors file.

    Raises ``ValueError`` when it is not such a header.
    """
    total = 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        shape = tensor.get("shape") if isinstance(tensor, dict) else None
        if not isinstance(shape, list):
            raise ValueError(f"tensor {name} has no shape")
        total += math.prod(int(size) for size in shape)
    return total


def format_bytes(num_bytes: float) -> str:
    """``num_bytes`` with a binary unit and three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} TiB"


def _train_numbers(config: Config) -> list[DerivedNumber]:
    learner = config.learner
    tokens = config.rollouts_per_step * config.actor.max_tokens
    return [
        DerivedNumber(
            "worst-case policy lag", f"{learner.max_policy_lag} steps", "learner.max_policy_lag"
        ),
        DerivedNumber(
            "rollouts per step", f"{config.rollouts_per_step:,}", "groups_per_step x group_size"
        ),
        DerivedNumber(
            "outstanding groups, at most",
            f"{config.max_outstanding_groups:,}",
            "(max_policy_lag + 1) x groups_per_step",
        ),
        DerivedNumber(
            "completion tokens per step, at most",
            f"{tokens:,}",
            "rollouts per step x actor.max_tokens",
        ),
        DerivedNumber(
            "prompts over the run" + (", at least" if learner.dynamic_sampling else ""),
            f"{learner.num_steps * learner.groups_per_step:,}",
            "num_steps x groups_per_step",
        ),
        DerivedNumber(
            "rollouts on disk, at most",
            format_bytes(max_payload_bytes(config)),
            "kept until a checkpoint covers them",
        ),
        *_recording_numbers(config),
    ]


def _recording_numbers(config: Config) -> list[DerivedNumber]:
    """What recordings for a replay need, if there are any."""
    steps = config.learner.recorded_steps
    if not steps:
        return []
    references = 4 * config.actor.max_tokens if config.has_verifier_reference else 0
    num_bytes = config.rollouts_per_step * (config.max_rollout_bytes + references)
    return [
        DerivedNumber(
            "recordings for --replay on disk, at most",
            format_bytes(steps * num_bytes),
            "learner.recorded_steps, as far back as the oldest checkpoint",
        )
    ]


def _collect_numbers(config: Config) -> list[DerivedNumber]:
    collect = config.collect
    rollouts = collect.num_prompts * collect.samples_per_prompt
    return [
        DerivedNumber("rollouts", f"{rollouts:,}", "num_prompts x samples_per_prompt"),
        DerivedNumber(
            "completion tokens, at most",
            f"{rollouts * config.actor.max_tokens:,}",
            "rollouts x actor.max_tokens",
        ),
    ]


def _model_numbers(config: Config, num_parameters: int) -> list[DerivedNumber]:
    weight_bytes = num_parameters * DTYPE_BYTES[config.model.dtype]
    numbers = [
        DerivedNumber("parameters", f"{num_parameters:,}", "the model's safetensors"),
        DerivedNumber("one weight version", format_bytes(weight_bytes), f"{config.model.dtype}"),
        DerivedNumber(
            "an actor's weights and KV cache, on CPU",
            format_bytes(weight_bytes + config.actor.kv_cache_bytes),
            "plus about 1.3 GiB for the engine itself",
        ),
    ]
    if config.run.kind == "collect":
        return numbers
    per_rank = num_parameters * _MASTER_AND_ADAM_BYTES / config.learner.num_ranks
    return [
        *numbers,
        DerivedNumber(
            "published versions on disk",
            format_bytes(weight_bytes * config.weights.keep_versions),
            "weights.keep_versions",
        ),
        DerivedNumber(
            "training state of one learner rank",
            format_bytes(per_rank),
            "float32 weights, gradients and AdamW, without activations",
        ),
        DerivedNumber(
            "checkpoints on disk",
            format_bytes(num_parameters * 12 * config.learner.keep_checkpoints),
            "weights and AdamW x keep_checkpoints",
        ),
    ]
