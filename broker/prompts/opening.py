"""From ``[prompts]`` to a checked :class:`Mixture`: files are read, generators looked up."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from broker.prompts.mixture import Mixture, PromptSet
from broker.prompts.sequences import EpochSequence, PromptSequence, StreamSequence
from broker.tasks import GENERATORS, HELD_OUT, Problem
from common.config import Config, PromptSetConfig
from common.errors import ConfigError
from common.prompt_file import PromptFile
from common.types import Prompt

_Generate = TypeVar("_Generate", bound=Callable[..., Any])

VERIFIER_TASK = "arithmetic"
"""Generated problems have one right number; the verifier of this name checks it."""


def open_prompt_source(config: Config) -> Mixture:
    """The sets that ``[prompts]`` names, checked whole.

    A collect run answers each prompt of a list once, ``collect.num_prompts`` in all. Raises
    :class:`PromptFileError` for a bad file and :class:`ConfigError` for a bad generator.
    """
    sets = [_open_set(config, item) for item in config.prompts.all_sets]
    is_collect = config.run.kind == "collect"
    return Mixture(sets, limit=config.collect.num_prompts if is_collect else 0)


def prompt_of(problem: Problem) -> Prompt:
    """A generated problem as the prompt that travels."""
    return Prompt(
        prompt_id=problem.problem_id,
        text=problem.text,
        task=VERIFIER_TASK,
        reference_json=json.dumps({"gold": problem.answer}),
    )


def find_task(name: str) -> str:
    """The registered name of a generated task; ``-`` and ``_`` are the same."""
    wanted = name.replace("-", "_")
    for known in GENERATORS:
        if known.replace("-", "_") == wanted:
            return known
    close = difflib.get_close_matches(wanted, list(GENERATORS), n=1)
    cure = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(GENERATORS)}"
    raise ConfigError(f"prompts.generator {name!r} is not registered ({cure})")


def _open_set(config: Config, item: PromptSetConfig) -> PromptSet:
    if item.file:
        return _open_file(config, item)
    if item.split == "held-out":
        return _open_held_out(config, item)
    return _open_stream(config, item)


def _open_file(config: Config, item: PromptSetConfig) -> PromptSet:
    file = PromptFile(Path(item.file))
    seed = f"{item.name}/{config.run.seed}" if item.shuffle else None
    sequence = EpochSequence(
        len(file),
        file.__getitem__,
        order_seed=seed,
        epochs=1 if config.run.kind == "collect" else item.epochs,
        limit=item.limit,
    )
    order = f"shuffled by seed {config.run.seed}" if item.shuffle else "in order"
    fingerprint = f"{len(file)} prompts, blake2b {file.digest}, {order}"
    return _prompt_set(item, sequence, item.file, fingerprint)


def _open_held_out(config: Config, item: PromptSetConfig) -> PromptSet:
    is_collect = config.run.kind == "collect"
    limits = [item.limit] if item.limit else []
    if is_collect:
        limits.append(config.collect.num_prompts)
    if not limits:
        raise ConfigError(
            'prompts.split = "held-out" needs a number of prompts (set prompts.limit, for example '
            "to 512)"
        )
    name = find_task(item.generator)
    problems = _with_options(HELD_OUT[name], item)(config.run.seed, min(limits))
    sequence = EpochSequence(
        len(problems),
        lambda position: prompt_of(problems[position]),
        order_seed=None,
        epochs=1 if is_collect else max(item.epochs, 1),
    )
    fingerprint = f"{len(problems)} held-out prompts, {_generated(name, config, item)}"
    return _prompt_set(item, sequence, item.generator, fingerprint)


def _open_stream(config: Config, item: PromptSetConfig) -> PromptSet:
    name = find_task(item.generator)
    problem_at = _with_options(GENERATORS[name], item)
    sequence = StreamSequence(
        lambda cursor: prompt_of(problem_at(config.run.seed, cursor)), limit=item.limit
    )
    return _prompt_set(item, sequence, item.generator, _generated(name, config, item))


def _prompt_set(
    item: PromptSetConfig, sequence: PromptSequence, origin: str, fingerprint: str
) -> PromptSet:
    return PromptSet(item.name, item.weight, sequence, origin, fingerprint)


def _generated(name: str, config: Config, item: PromptSetConfig) -> str:
    options = "".join(f", {key} = {value!r}" for key, value in sorted(item.options.items()))
    return f"{name} of seed {config.run.seed}{options}"


def _with_options(generate: _Generate, item: PromptSetConfig) -> _Generate:
    """``generate`` with the options of a set filled in."""
    known = [
        name
        for name, parameter in inspect.signature(generate).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for name in item.options:
        if name not in known:
            raise ConfigError(
                f"prompts.options.{name} is not an option of {item.generator} "
                f"(known: {', '.join(known)})"
            )
    return cast("_Generate", partial(generate, **item.options))
