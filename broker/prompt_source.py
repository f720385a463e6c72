"""Prompts by cursor: a file in seeded epochs, or a generator. Pure but for reading the file.

The cursor is the number of prompts admitted, so it equals the next group id and the journal needs
no other record of it. The same seed gives the same prompt at the same cursor in every process.
"""

from __future__ import annotations

import difflib
import inspect
import json
import random
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from broker.tasks import GENERATORS, HELD_OUT, Problem
from common.config import Config, PromptsConfig
from common.errors import ConfigError
from common.prompt_file import PromptFile
from common.types import Prompt

_Generate = TypeVar("_Generate", bound=Callable[..., Any])

VERIFIER_TASK = "arithmetic"
"""Generated problems have one right number; the verifier of this name checks it."""


class PromptSource(Protocol):
    """Where prompts come from."""

    def prompt_at(self, cursor: int) -> Prompt | None:
        """Prompt number ``cursor`` (from 0), or None when the source is used up."""
        ...


class EpochSource:
    """A finite list of prompts, in a new seeded order each epoch, up to ``num_prompts`` in all."""

    def __init__(
        self,
        size: int,
        read: Callable[[int], Prompt],
        *,
        seed: int,
        shuffle: bool,
        num_prompts: int | None,
    ) -> None:
        self._size = size
        self._read = read
        self._seed = seed
        self._shuffle = shuffle
        self._num_prompts = num_prompts
        self._order = lru_cache(maxsize=2)(self._order_of)

    def prompt_at(self, cursor: int) -> Prompt | None:
        """See :class:`PromptSource`."""
        if self._num_prompts is not None and cursor >= self._num_prompts:
            return None
        epoch, place = divmod(cursor, self._size)
        return self._read(self._order(epoch)[place] if self._shuffle else place)

    def _order_of(self, epoch: int) -> list[int]:
        order = list(range(self._size))
        random.Random(f"prompt-order/{self._seed}/{epoch}").shuffle(order)
        return order


class StreamSource:
    """An endless generator of training problems, cut after ``num_prompts``."""

    def __init__(self, problem_at: Callable[[int], Problem], *, num_prompts: int | None) -> None:
        self._problem_at = problem_at
        self._num_prompts = num_prompts

    def prompt_at(self, cursor: int) -> Prompt | None:
        """See :class:`PromptSource`."""
        if self._num_prompts is not None and cursor >= self._num_prompts:
            return None
        return prompt_of(self._problem_at(cursor))


def prompt_of(problem: Problem) -> Prompt:
    """A generated problem as the prompt that travels."""
    return Prompt(
        prompt_id=problem.problem_id,
        text=problem.text,
        task=VERIFIER_TASK,
        reference_json=json.dumps({"gold": problem.answer}),
    )


def open_prompt_source(config: Config) -> PromptSource:
    """The source that ``[prompts]`` names, checked whole.

    Raises :class:`PromptFileError` for a bad file and :class:`ConfigError` for a bad generator.
    """
    prompts = config.prompts
    if prompts.file:
        return _open_file(config)
    name = find_task(prompts.generator)
    num_prompts = _num_prompts(config, None)
    if prompts.split == "held-out":
        return _open_held_out(config, name, num_prompts)
    problem_at = _with_options(GENERATORS[name], prompts)
    return StreamSource(partial(problem_at, config.run.seed), num_prompts=num_prompts)


def find_task(name: str) -> str:
    """The registered name of a generated task; ``-`` and ``_`` are the same."""
    wanted = name.replace("-", "_")
    for known in GENERATORS:
        if known.replace("-", "_") == wanted:
            return known
    close = difflib.get_close_matches(wanted, list(GENERATORS), n=1)
    cure = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(GENERATORS)}"
    raise ConfigError(f"prompts.generator {name!r} is not registered ({cure})")


def _open_file(config: Config) -> PromptSource:
    file = PromptFile(Path(config.prompts.file))
    return EpochSource(
        len(file),
        file.__getitem__,
        seed=config.run.seed,
        shuffle=config.prompts.shuffle,
        num_prompts=_num_prompts(config, len(file)),
    )


def _open_held_out(config: Config, name: str, num_prompts: int | None) -> PromptSource:
    if num_prompts is None:
        raise ConfigError(
            'prompts.split = "held-out" needs a number of prompts (set prompts.limit, for example '
            "to 512)"
        )
    problems = _with_options(HELD_OUT[name], config.prompts)(config.run.seed, num_prompts)
    return EpochSource(
        len(problems),
        lambda place: prompt_of(problems[place]),
        seed=config.run.seed,
        shuffle=False,
        num_prompts=num_prompts,
    )


def _num_prompts(config: Config, file_size: int | None) -> int | None:
    """Prompts in all, or None for no end. A collect run answers each prompt of a file once."""
    limits = [config.prompts.limit] if config.prompts.limit else []
    if config.run.kind == "collect":
        limits.append(config.collect.num_prompts)
        if file_size is not None:
            limits.append(file_size)
    return min(limits, default=None)


def _with_options(generate: _Generate, prompts: PromptsConfig) -> _Generate:
    """``generate`` with the options of ``[prompts]`` filled in."""
    known = [
        name
        for name, parameter in inspect.signature(generate).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for name in prompts.options:
        if name not in known:
            raise ConfigError(
                f"prompts.options.{name} is not an option of {prompts.generator} "
                f"(known: {', '.join(known)})"
            )
    return cast("_Generate", partial(generate, **prompts.options))
