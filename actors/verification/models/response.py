"""What of a completion a model judges: the final summary, or the whole, or step by step."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.thoughts import THINK_CLOSE, THINK_OPEN

_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")
_NEWLINES = re.compile(r"\n\s*")
_NUMBERED = re.compile(r"\n\s*(?=(?:step\s+)?\d{1,3}[.):])", re.IGNORECASE)

STEP_BORDERS: dict[str, re.Pattern[str]] = {
    "blank-line": _BLANK_LINES,
    "newline": _NEWLINES,
    "numbered": _NUMBERED,
}
"""Name of a way to cut text into steps -> what stands between two steps."""


def final_summary(response: str) -> str | None:
    """The text after the last ``</think>``, without blanks around it; None where there is none.

    A response without tags is all summary, unless its reasoning was opened and never closed.
    DeepSeek-R1's helpful reward reads the summary only, so that it leaves the reasoning alone
    (Nature 645, Methods).
    """
    _, closed, summary = response.rpartition(THINK_CLOSE)
    if not closed and THINK_OPEN in response:
        return None
    return summary.strip() or None


@dataclass(frozen=True, slots=True)
class Step:
    """Characters ``start`` up to ``end`` of the text: one step, without what stands around it."""

    start: int
    end: int


def split_steps(text: str, borders: str) -> list[Step]:
    """Cut ``text`` where ``borders`` of :data:`STEP_BORDERS` says; empty steps are none."""
    cuts = [(match.start(), match.end()) for match in STEP_BORDERS[borders].finditer(text)]
    starts = [0, *(end for _, end in cuts)]
    ends = [*(start for start, _ in cuts), len(text)]
    spans = (_trimmed(text, start, end) for start, end in zip(starts, ends, strict=True))
    return [step for step in spans if step.end > step.start]


def _trimmed(text: str, start: int, end: int) -> Step:
    part = text[start:end]
    left = len(part) - len(part.lstrip())
    return Step(start + left, start + left + len(part.strip()))


AGGREGATIONS: dict[str, Callable[[Sequence[float]], float]] = {"min": min, "product": math.prod}
"""Scores of the steps -> score of the answer ("Let's Verify Step by Step", arXiv 2305.20050)."""
