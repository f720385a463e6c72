"""Fields of a ``math`` task: the gold answer, and where completions have theirs."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

import msgspec

from common.answers import CONVENTIONS, Convention
from common.math_answer.limits import AnswerError
from common.math_answer.magnitude import expressions_in
from common.math_answer.rational import rational_value
from common.math_answer.reader import read_answer
from common.math_answer.tree import Answer


class MathReference(msgspec.Struct, frozen=True):
    """Fields of a ``math`` task.

    ``gold`` is the right answer as LaTeX or plain text, or a JSON number; it must be an answer of
    the grammar, within its limits and with a value, since nothing could equal it otherwise.
    ``extract`` names the conventions by which an answer is found, the first that finds one counts.
    """

    gold: str | int | float
    extract: Annotated[tuple[Convention, ...], msgspec.Meta(min_length=1)] = CONVENTIONS

    def __post_init__(self) -> None:
        try:
            read_gold(self.gold_text)
        except AnswerError as error:
            raise ValueError(
                f"gold must be an answer that can be compared, got {self.gold_text[:80]!r}: {error}"
            ) from None

    @property
    def gold_text(self) -> str:
        """The gold answer as text."""
        return str(self.gold)


@lru_cache(4096)
def read_gold(text: str) -> Answer:
    """The tree of a gold answer; raises :class:`AnswerError` also where it has no value."""
    answer = read_answer(text)
    for expression in expressions_in(answer):
        rational_value(expression)
    return answer
