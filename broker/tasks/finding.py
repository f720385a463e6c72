"""From ``prompts.generator`` and its options to the problems that they name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from broker.tasks import GENERATORS, HELD_OUT, Problem
from broker.tasks.reasoning_gym import DatasetProblems
from common.errors import ConfigError
from common.reasoning_gym_catalog import GENERATOR_PREFIX

_Generate = TypeVar("_Generate", bound=Callable[..., Any])


class Problems(Protocol):
    """Every problem of one task with one set of options."""

    @property
    def name(self) -> str:
        """Registered name of the task."""
        ...

    @property
    def identity(self) -> str:
        """What the problems depend on besides seed and options."""
        ...

    def prompt_at(self, seed: int, index: int) -> Problem:
        """Training problem number ``index`` of the endless stream that ``seed`` names."""
        ...

    def held_out(self, seed: int, count: int) -> list[Problem]:
        """``count`` distinct problems that no stream has."""
        ...


def find_problems(name: str, options: Mapping[str, object], *, repeatable: bool = True) -> Problems:
    """The task ``name`` with ``options``; raises :class:`ConfigError` with the near match.

    ``repeatable`` refuses what a restarted run could not go on with.
    """
    dataset = name.removeprefix(GENERATOR_PREFIX)
    if dataset != name:
        return DatasetProblems.open(dataset, options, repeatable=repeatable)
    return _Registered.open(name, options)


def find_task(name: str) -> str:
    """The registered name of a generated task; ``-`` and ``_`` are the same."""
    wanted = name.replace("-", "_")
    for known in GENERATORS:
        if known.replace("-", "_") == wanted:
            return known
    close = difflib.get_close_matches(wanted, list(GENERATORS), n=1)
    known_names = f"{', '.join(GENERATORS)}, {GENERATOR_PREFIX}NAME"
    cure = f"did you mean {close[0]!r}?" if close else f"known: {known_names}"
    raise ConfigError(f"prompts.generator {name!r} is not registered ({cure})")


@dataclass(frozen=True, slots=True)
class _Registered:
    """A task of ``GENERATORS``; its options are the keyword arguments of its functions."""

    name: str
    options: Mapping[str, object]

    @classmethod
    def open(cls, name: str, options: Mapping[str, object]) -> _Registered:
        found = find_task(name)
        _check_options(GENERATORS[found], name, options)
        return cls(found, dict(options))

    @property
    def identity(self) -> str:
        return self.name

    def prompt_at(self, seed: int, index: int) -> Problem:
        return _with_options(GENERATORS[self.name], self.options)(seed, index)

    def held_out(self, seed: int, count: int) -> list[Problem]:
        return _with_options(HELD_OUT[self.name], self.options)(seed, count)


def _with_options(generate: _Generate, options: Mapping[str, object]) -> _Generate:
    """``generate`` with the options of a set filled in."""
    return cast("_Generate", partial(generate, **options))


def _check_options(
    generate: Callable[..., Any], generator: str, options: Mapping[str, object]
) -> None:
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(generate).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name, value in options.items():
        if name not in known:
            raise ConfigError(
                f"prompts.options.{name} is not an option of {generator} "
                f"(known: {', '.join(known)})"
            )
        if type(value) is not type(known[name]):
            raise ConfigError(
                f"prompts.options.{name} must be {type(known[name]).__name__}, got {value!r} "
                f"(for example {known[name]!r})"
            )
