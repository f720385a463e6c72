"""What a task of each kind must bring along: checked when prompts are read, used when answers are.

A malformed task is found at load time with file and line; it must never become a reward.
"""

from __future__ import annotations

import difflib
from typing import Annotated, TypeVar

import msgspec

from common.answers import parse_number
from common.errors import ConfigError, DataError
from common.reasoning_gym_catalog import find_dataset, is_installed
from common.references.choice import ChoiceReference
from common.references.code import CodeReference
from common.references.math import MathReference
from common.references.model import ModelReference
from common.references.task import TaskReference
from common.symbolic_gold import check_symbolic_gold

_MAX_NUMBERS = 64
_Integer = Annotated[int, msgspec.Meta(ge=-(10**12), le=10**12)]
_Given = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
_Reference = TypeVar("_Reference", bound=msgspec.Struct)


class ArithmeticReference(msgspec.Struct, frozen=True):
    """Fields of an ``arithmetic`` task: ``gold``, a number as text or as a JSON number."""

    gold: str | int | float

    def __post_init__(self) -> None:
        if parse_number(str(self.gold)) is None:
            raise ValueError(f"gold must be a number, got {str(self.gold)[:80]!r}")


class CountdownReference(msgspec.Struct, frozen=True):
    """Fields of a ``countdown`` task."""

    numbers: Annotated[tuple[_Given, ...], msgspec.Meta(min_length=1, max_length=_MAX_NUMBERS)]
    target: _Integer


REFERENCES: dict[str, type[msgspec.Struct]] = {
    "arithmetic": ArithmeticReference,
    "choice": ChoiceReference,
    "code": CodeReference,
    "countdown": CountdownReference,
    "helpful": ModelReference,
    "judge": ModelReference,
    "math": MathReference,
    "process": ModelReference,
    "safety": ModelReference,
    "task": TaskReference,
}
"""Task kind -> its fields."""


def read_reference(reference_json: str, kind: type[_Reference]) -> _Reference:
    """The fields of a task as the typed record ``kind``; fields it does not name are ignored.

    Raises :class:`DataError` that names the field.
    """
    try:
        return msgspec.json.decode(reference_json, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise DataError(f"malformed task: {error}") from None


def check_task(task: str, reference_json: str) -> None:
    """Raise :class:`DataError` unless ``task`` is a known kind and its fields are complete."""
    if task not in REFERENCES:
        close = difflib.get_close_matches(task, REFERENCES, n=1, cutoff=0.5)
        cure = f"did you mean {close[0]}?" if close else f"known: {', '.join(REFERENCES)}"
        raise DataError(f"unknown task {task!r} ({cure})")
    reference = read_reference(reference_json, REFERENCES[task])
    if isinstance(reference, MathReference) and reference.is_symbolic:
        check_symbolic_gold(reference.gold_text)
    if isinstance(reference, TaskReference) and is_installed():
        try:
            find_dataset(reference.dataset)
        except ConfigError as error:
            raise DataError(f"malformed task: {error}") from None
