"""What of a completion a model judges: the final summary, or the whole, or step by step."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actors.verification.visible import shows_something
from common.thoughts import THINK_CLOSE, THINK_OPEN

_BLANKS = re.compile(r"\s++")
_NUMBER = re.compile(r"(?:step\s++)?\d{1,3}[.):]", re.IGNORECASE)

STEP_BORDERS: dict[str, Callable[[str, re.Match[str]], bool]] = {
    "blank-line": lambda text, blanks: blanks[0].count("\n") > 1,
    "newline": lambda text, blanks: "\n" in blanks[0],
    "numbered": lambda text, blanks: (
        "\n" in blanks[0] and _NUMBER.match(text, blanks.end()) is not None
    ),
}
"""Name of a way to cut text into steps -> whether blanks of the text stand between two steps."""


def final_summary(response: str) -> str | None:
    """The text after the last ``</think>``, without blanks around it; None where there is none.

    A response without tags is all summary, unless its reasoning was opened and never closed, also
    if it was closed before. What shows nothing is none.
    DeepSeek-R1's helpful reward reads the summary only, so that it leaves the reasoning alone
    (Nature 645, Methods).
    """
    summary = response.rpartition(THINK_CLOSE)[2]
    if THINK_OPEN in summary or not shows_something(summary):
        return None
    return summary.strip()


@dataclass(frozen=True, slots=True)
class Step:
    """Characters ``start`` up to ``end`` of the text: one step, without what stands around it."""

    start: int
    end: int


def split_steps(text: str, borders: str) -> list[Step]:
    """Cut ``text`` where ``borders`` of :data:`STEP_BORDERS` says; what shows nothing is no step.

    In linear time, however many blanks there are.
    """
    is_border = STEP_BORDERS[borders]
    cuts = [blanks.span() for blanks in _BLANKS.finditer(text) if is_border(text, blanks)]
    starts = [0, *(end for _, end in cuts)]
    ends = [*(start for start, _ in cuts), len(text)]
    spans = (_trimmed(text, start, end) for start, end in zip(starts, ends, strict=True))
    return [step for step in spans if shows_something(text[step.start : step.end])]


def _trimmed(text: str, start: int, end: int) -> Step:
    part = text[start:end]
    left = len(part) - len(part.lstrip())
    return Step(start + left, start + left + len(part.strip()))


AGGREGATIONS: dict[str, Callable[[Sequence[float]], float]] = {"min": min, "product": math.prod}
"""Scores of the steps -> score of the answer ("Let's Verify Step by Step", arXiv 2305.20050)."""
