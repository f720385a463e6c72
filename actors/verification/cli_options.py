"""What the options of ``headrace verify`` may say; anything else is an error of its use."""

from __future__ import annotations

import math
from typing import cast, get_args

import click

from common.answer_conventions import Convention
from common.config import RewardWeight
from common.user_rewards import FUNCTION_KIND

NOT_BY_NAME = frozenset({FUNCTION_KIND})
"""Kinds that need more than the fields of a line: a term of a run file names what they run."""


def read_kind(_: click.Context, __: click.Parameter, value: str) -> str:
    from actors.verification.backends import known_kinds

    kinds = known_kinds() - NOT_BY_NAME
    if value not in kinds:
        known = ", ".join(sorted(kinds))
        raise click.BadParameter(f"no verifier for {value!r} (known kinds: {known})")
    return value


def read_rewards(
    _: click.Context, __: click.Parameter, value: str | None
) -> tuple[RewardWeight, ...]:
    """``accuracy=1,format=0.5``; a name alone has weight 1."""
    weights: dict[str, float] = {}
    for term in value.split(",") if value else ():
        name, given, weight = (part.strip() for part in term.partition("="))
        if name in weights:
            raise click.BadParameter(f"each term is named once, got {name!r} twice")
        if name in NOT_BY_NAME:
            raise click.BadParameter(f"{name!r} is named by its own name in a run file (--config)")
        weights[name] = _read_weight(weight) if given else 1.0
    return tuple(RewardWeight(name=name, weight=weight) for name, weight in weights.items())


def _read_weight(text: str) -> float:
    """Raises ``BadParameter`` for what is no finite number."""
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise click.BadParameter(f"a weight must be a number, got {text!r}")
    return weight


def read_seconds(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    """``FloatRange`` lets NaN through: it is on neither side of a limit."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("must be a number of seconds, got nan")
    return value


def read_extract(
    _: click.Context, __: click.Parameter, value: str | None
) -> tuple[Convention, ...]:
    """``boxed,answer-tag``."""
    names = tuple(name.strip() for name in value.split(",")) if value else ()
    for name in names:
        if name not in get_args(Convention):
            known = ", ".join(get_args(Convention))
            raise click.BadParameter(f"no convention is called {name!r} (known: {known})")
    return cast("tuple[Convention, ...]", names)
