"""How often a run will see its prompts, as ``headrace check`` prints it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from common.config import Config, PromptSetConfig
from deploy.derived_numbers import DerivedNumber


def prompt_numbers(config: Config, file_sizes: Mapping[str, int]) -> list[DerivedNumber]:
    """Size, share and epochs of each prompt set; ``file_sizes`` counts the prompts of files.

    A set whose file could not be read is left out.
    """
    wanted = _num_wanted(config)
    total = sum(item.weight for item in config.prompts.all_sets)
    numbers: list[DerivedNumber] = []
    capacity = 0.0
    for item in config.prompts.all_sets:
        if item.file and item.name not in file_sizes:
            capacity = math.inf
            continue
        size = _size(config, item, file_sizes)
        capacity += _capacity(config, item, size)
        numbers.append(_set_number(item, size, item.weight / total, wanted))
    if capacity < wanted:
        cure = "epochs and limit of all sets; the run ends early"
        numbers.append(
            DerivedNumber("prompts run out", f"after {capacity:,.0f} of {wanted:,}", cure)
        )
    return numbers


def _num_wanted(config: Config) -> int:
    """Prompts that the run draws if none is dropped."""
    if config.run.kind == "collect":
        return config.collect.num_prompts
    return config.learner.num_steps * config.learner.groups_per_step


def _size(config: Config, item: PromptSetConfig, file_sizes: Mapping[str, int]) -> int | None:
    """Prompts that the set holds; None for an endless generator."""
    if item.file:
        return file_sizes[item.name]
    if item.split == "train":
        return None
    limits = [item.limit] if item.limit else []
    if config.run.kind == "collect":
        limits.append(config.collect.num_prompts)
    return min(limits, default=0)


def _capacity(config: Config, item: PromptSetConfig, size: int | None) -> float:
    """Prompts that the set can give before it is used up."""
    limit = item.limit or math.inf
    if size is None:
        return limit
    if config.run.kind == "collect":
        return min(size, limit)
    if not item.file:
        return size * max(item.epochs, 1)
    return min(item.epochs * size if item.epochs else math.inf, limit)


def _set_number(
    item: PromptSetConfig, size: int | None, share: float, wanted: int
) -> DerivedNumber:
    parts = ["endless" if size is None else f"{size:,} prompts", f"{share:.3g} of the draws"]
    if size:
        parts.append(f"{wanted * share / size:.3g} epochs a run")
    return DerivedNumber(f"prompt set {item.name}", ", ".join(parts), item.file or item.generator)
