"""Rules of ``[prompts]`` and of sampling by difficulty: a sentence with a cure for each broken."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields

from common.config import Config, PromptsConfig, PromptSetConfig

MAX_PROMPT_SETS = 32
"""Sets are a label of metrics, so their number is bounded."""
MAX_RETIRE_AFTER = 254
"""The ledger keeps one byte a prompt."""

_SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def prompt_rules(config: Config) -> Iterator[str]:
    """What is wrong with the prompts of ``config``."""
    prompts = config.prompts
    if prompts.sets:
        yield from _table_rules(prompts)
    for item in prompts.all_sets:
        where = f"prompts.sets {item.name!r}" if prompts.sets else "prompts"
        yield from _set_rules(item, where)
    yield from _retirement_rules(prompts)
    yield from _sampling_rules(config)


def _table_rules(prompts: PromptsConfig) -> Iterator[str]:
    """Rules of [[prompts.sets]] as a whole."""
    single = {item.name for item in fields(PromptSetConfig)}
    blank = PromptsConfig()
    given = [
        f"prompts.{item.name}"
        for item in fields(PromptsConfig)
        if item.name in single and getattr(prompts, item.name) != getattr(blank, item.name)
    ]
    if given:
        yield (
            f"[[prompts.sets]] takes the place of file, generator and their keys, got also "
            f"{', '.join(given)} (move them into a set)"
        )
    if len(prompts.sets) > MAX_PROMPT_SETS:
        yield (
            f"prompts.sets must be at most {MAX_PROMPT_SETS}, got {len(prompts.sets)} "
            "(join some files)"
        )
    repeated = [name for name, count in Counter(s.name for s in prompts.sets).items() if count > 1]
    if repeated:
        yield f"prompts.sets must have names of their own, got {repeated[0]!r} twice (rename one)"


def _set_rules(item: PromptSetConfig, where: str) -> Iterator[str]:
    given = [key for key in ("file", "generator") if getattr(item, key)]
    if len(given) != 1:
        yield (
            f"[{where}] needs exactly one of file and generator, got {given or 'neither'} "
            '(for example file = "prompts.jsonl")'
        )
    if not _SET_NAME.fullmatch(item.name):
        yield (
            f"{where}: name must be up to 64 letters, digits, '.', '_' or '-', got {item.name!r} "
            '(for example "math")'
        )
    if not 0 < item.weight < float("inf"):
        yield f"{where}: weight must be a finite number above 0, got {item.weight} (use 1.0)"
    for key in ("epochs", "limit"):
        value = getattr(item, key)
        if value < 0:
            yield f"{where}.{key} must be >= 0, got {value} (use 0 for no limit)"
    if item.epochs and not _is_list(item):
        yield (
            f"{where}.epochs is for files and held-out lists, got {item.epochs} with an endless "
            "generator (use limit)"
        )


def _retirement_rules(prompts: PromptsConfig) -> Iterator[str]:
    rate, after = prompts.retire_pass_rate, prompts.retire_after
    if not 0 <= rate <= 1:
        yield f"prompts.retire_pass_rate must be within 0..1, got {rate} (use 0 to retire none)"
    if not 1 <= after <= MAX_RETIRE_AFTER:
        yield f"prompts.retire_after must be within 1..{MAX_RETIRE_AFTER}, got {after} (use 2)"
    if rate and not any(_is_list(item) for item in prompts.all_sets):
        yield (
            f"prompts.retire_pass_rate is for files and held-out lists, got {rate} with endless "
            "generators only (use 0: their prompts do not come back)"
        )


def _sampling_rules(config: Config) -> Iterator[str]:
    if config.learner.dynamic_sampling and config.run.kind == "collect":
        yield (
            "learner.dynamic_sampling must be false in a collect run, got true (an evaluation "
            "without the prompts that are all right or all wrong would be none)"
        )


def _is_list(item: PromptSetConfig) -> bool:
    """Whether the prompts of a set are finite, so that they can come back."""
    return bool(item.file) or item.split == "held-out"
