"""Fields of a ``math`` task: the gold answer, and where completions have theirs."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any

import msgspec

from common.answer_conventions import CONVENTIONS, MARKED, Convention
from common.math_answer.limits import AnswerError
from common.math_answer.magnitude import expressions_in
from common.math_answer.rational import rational_value
from common.math_answer.reader import read_answer
from common.math_answer.symbolic import (
    INSTALL,
    check_admissible,
    has_to_be_worked_out,
    is_installed,
)
from common.math_answer.tree import Answer
from common.types import Prompt

SYMBOLIC_KIND = "math-symbolic"
"""Kind of check for gold answers that have to be worked out; their tasks are of kind ``math``."""


class MathReference(msgspec.Struct, frozen=True):
    """Fields of a ``math`` task.

    ``gold`` is the right answer as LaTeX or plain text, or a JSON number; it must be an answer of
    the grammar, within its limits and with a value, since nothing could equal it otherwise. Or it
    has to be worked out, where math-verify is installed; whether that can read it takes a process
    of its own to tell (:mod:`common.symbolic_gold`).
    ``extract`` names the conventions by which an answer is found, the first that finds one counts.
    """

    gold: str | int | float
    extract: Annotated[tuple[Convention, ...], msgspec.Meta(min_length=1)] = CONVENTIONS

    def __post_init__(self) -> None:
        try:
            read_gold(self.gold_text)
        except AnswerError as error:
            reason = _not_symbolic(self.gold_text, str(error))
            if reason:
                raise ValueError(
                    f"gold must be an answer that can be compared, got {self.gold_text[:80]!r}: "
                    f"{reason}"
                ) from None

    @property
    def gold_text(self) -> str:
        """The gold answer as text."""
        return str(self.gold)

    @property
    def is_symbolic(self) -> bool:
        """True where the grammar does not read the gold answer, and math-verify has to."""
        try:
            read_gold(self.gold_text)
        except AnswerError:
            return True
        return False


def _not_symbolic(gold: str, reason: str) -> str:
    """Why math-verify cannot be asked either, empty if it can; ``reason`` is the grammar's."""
    if not has_to_be_worked_out(gold):
        return reason
    try:
        check_admissible(gold)
    except AnswerError as error:
        return str(error)
    return "" if is_installed() else f"{reason}, or read by math-verify ({INSTALL})"


def with_conventions(prompt: Prompt, extract: tuple[Convention, ...]) -> Prompt:
    """``prompt`` with ``extract`` as its conventions, if it is a math task that names none."""
    if not extract or prompt.task != "math":
        return prompt
    reference_json = _with_field(prompt.reference_json, extract)
    return msgspec.structs.replace(prompt, reference_json=reference_json)


@lru_cache(1024)
def _with_field(reference_json: str, extract: tuple[Convention, ...]) -> str:
    """What is no JSON object stays as it is: whoever reads the task says what is wrong with it."""
    try:
        fields = msgspec.json.decode(reference_json, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return reference_json
    return msgspec.json.encode({"extract": extract, **fields}).decode()


class _Extract(msgspec.Struct, frozen=True):
    extract: tuple[Convention, ...] = CONVENTIONS


def conventions_of(prompt: Prompt) -> tuple[Convention, ...]:
    """By which the answers of ``prompt`` are found; for votes, whatever else is wrong with it."""
    if prompt.task != "math":
        return MARKED
    try:
        return msgspec.json.decode(prompt.reference_json, type=_Extract).extract
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return MARKED


@lru_cache(4096)
def read_gold(text: str) -> Answer:
    """The tree of a gold answer; raises :class:`AnswerError` also where it has no value."""
    answer = read_answer(text)
    for expression in expressions_in(answer):
        rational_value(expression)
    return answer
