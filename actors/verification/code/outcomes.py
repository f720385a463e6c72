"""How one test ended, and what that makes of a whole answer. Pure."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from actors.verification.judgement import Judgement
from common.types import VerdictStatus


class Outcome(enum.Enum):
    """How one test ended."""

    RIGHT = "right"
    WRONG = "wrong"
    TOO_SLOW = "too slow"
    RUNTIME_ERROR = "runtime error"
    SYNTAX_ERROR = "syntax error"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """The outcome of one test; ``detail`` says more, and nothing about what was expected."""

    outcome: Outcome
    detail: str = ""


def summarise(
    outcomes: Sequence[CaseOutcome], num_tests: int, *, all_or_nothing: bool
) -> Judgement:
    """The judgement of an answer from the tests that were run, at least one.

    All or nothing may stop at the first failure: what was not run counts as not passed. The status
    is ``limit-exceeded`` where a limit cost the answer something.
    """
    num_right = sum(item.outcome is Outcome.RIGHT for item in outcomes)
    value = float(num_right == num_tests) if all_or_nothing else num_right / num_tests
    limited = any(item.outcome is Outcome.LIMIT for item in outcomes)
    status = VerdictStatus.LIMIT_EXCEEDED if limited else VerdictStatus.GRADED
    return Judgement(status=status, value=value, reason=_reason(outcomes, num_tests))


def _reason(outcomes: Sequence[CaseOutcome], num_tests: int) -> str:
    """Such as ``2 of 5 tests right, 1 limit, 2 not run; first: limit (cpu)``."""
    if len(outcomes) == num_tests and all(item.outcome is Outcome.RIGHT for item in outcomes):
        return f"{num_tests} of {num_tests} tests right"
    counts = Counter(item.outcome for item in outcomes)
    parts = [f"{counts[Outcome.RIGHT]} of {num_tests} tests right"]
    parts += [
        f"{counts[kind]} {kind.value}"
        for kind in Outcome
        if kind is not Outcome.RIGHT and counts[kind]
    ]
    if len(outcomes) < num_tests:
        parts.append(f"{num_tests - len(outcomes)} not run")
    first = next((item for item in outcomes if item.outcome is not Outcome.RIGHT), None)
    text = ", ".join(parts)
    if first is not None and first.detail:
        text += f"; first: {first.outcome.value} ({first.detail})"
    return printable(text)[:2000]


def printable(text: str) -> str:
    """Everything that could move a terminal's cursor or hide text is written as an escape."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
