"""docs/math-answers.md says what the code does: its tables are read and run here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import math_verify
import pytest

from actors.verification.judgement import Judgement
from actors.verification.math.symbolic import SYMBOLIC_CPU_LIMIT_S, compare_symbolic
from actors.verification.math.verifier import CPU_LIMIT_S, compare
from common.answer_conventions import CONVENTIONS
from common.answers import MAX_CONCLUSION_CHARS, extract_answer
from common.errors import DataError
from common.math_answer import limits

_ROOT = Path(__file__).parents[5]
_PAGE = (_ROOT / "docs" / "math-answers.md").read_text(encoding="utf-8")
_DECISIONS = "| gold | answer | verdict | why |"
_WORKED_OUT = "| gold to work out | answer | verdict | why |"
_AGAINST_MATH_VERIFY = "| gold | answer | headrace | math-verify | why |"
_AGAINST_HENDRYCKS = "| gold | answer | headrace | hendrycks | why |"


def _rows(header: str) -> Iterator[list[str]]:
    """Cells of every table with this header, code marks taken off."""
    for table in _PAGE.split(header)[1:]:
        for line in table.strip("\n").splitlines()[1:]:
            if not line.startswith("|"):
                break
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            yield [cell.strip().strip("`").replace("\\|", "|") for cell in cells]


def _verdict(answer: str, gold: str, judge: Callable[[str, str], Judgement] = compare) -> str:
    try:
        judgement = judge(answer, gold)
    except DataError:
        return "bad gold"
    if judgement.value == 1.0:
        return "right"
    return "refused" if judgement.reason else "wrong"


@pytest.mark.parametrize(("gold", "answer", "verdict"), [row[:3] for row in _rows(_DECISIONS)])
def test_an_answer_is_judged_as_the_page_says(gold: str, answer: str, verdict: str) -> None:
    assert _verdict(answer, gold) == verdict


@pytest.mark.parametrize(("gold", "answer", "verdict"), [row[:3] for row in _rows(_WORKED_OUT)])
def test_an_answer_to_what_must_be_worked_out_is_judged_as_the_page_says(
    gold: str, answer: str, verdict: str
) -> None:
    assert _verdict(answer, gold, compare_symbolic) == verdict
    assert _verdict(answer, gold) == "bad gold"


@pytest.mark.parametrize(
    ("completion", "answer"), [row[:2] for row in _rows("| completion | answer | why |")]
)
def test_the_answer_stands_where_the_page_says(completion: str, answer: str) -> None:
    assert extract_answer(completion, CONVENTIONS) == (None if answer == "-" else answer)


@pytest.mark.parametrize(
    ("completion", "answer"), [row[:2] for row in _rows("| completion | last number | why |")]
)
def test_the_last_number_is_what_the_page_says(completion: str, answer: str) -> None:
    assert extract_answer(completion, ("last-number",)) == (None if answer == "-" else answer)


def test_the_page_states_the_limits_that_hold() -> None:
    assert [int(row[1]) for row in _rows("| limit | value |")] == [
        MAX_CONCLUSION_CHARS,
        limits.MAX_ANSWER_BYTES,
        limits.MAX_TOKENS,
        limits.MAX_DEPTH,
        limits.MAX_DIGITS,
        limits.MAX_ITEMS,
        limits.MAX_EXPONENT,
        limits.MAX_FACTORIAL,
        limits.MAX_LOG10,
        CPU_LIMIT_S,
        SYMBOLIC_CPU_LIMIT_S,
    ]


def _golden_pairs(name: str) -> list[tuple[str, str, bool]]:
    content: dict[str, Any] = json.loads((_ROOT / "tests" / "golden" / name).read_text("utf-8"))
    return [tuple(pair) for pair in content["pairs"]]


_DISAGREEMENTS = {(row[0], row[1]): row[2] for row in _rows(_AGAINST_MATH_VERIFY)}
_HENDRYCKS = {(row[0], row[1]): row[2] for row in _rows(_AGAINST_HENDRYCKS)}


@pytest.mark.parametrize(
    ("gold", "answer", "theirs"), _golden_pairs("math_verify_pairs.json"), ids=str
)
def test_where_we_differ_from_math_verify_stands_on_the_page(
    gold: str, answer: str, theirs: bool
) -> None:
    ours = _verdict(answer, gold)
    expected = _DISAGREEMENTS.get((gold, answer))
    assert ours == expected if expected else (ours == "right") is theirs


@pytest.mark.parametrize(
    ("gold", "answer", "theirs"), _golden_pairs("hendrycks_pairs.json"), ids=str
)
def test_where_we_differ_from_the_math_dataset_stands_on_the_page(
    gold: str, answer: str, theirs: bool
) -> None:
    ours = _verdict(answer, gold)
    expected = _HENDRYCKS.get((gold, answer))
    assert ours == expected if expected else (ours == "right") is theirs


def test_every_disagreement_on_the_page_is_one() -> None:
    """No row may outlive the difference that it explains."""
    pairs = {
        (gold, answer): theirs for gold, answer, theirs in _golden_pairs("math_verify_pairs.json")
    }
    for gold, answer, ours, theirs, _ in _rows(_AGAINST_MATH_VERIFY):
        assert (ours == "right") != (theirs == "right") or ours == "bad gold"
        assert pairs.get((gold, answer), True) is (theirs == "right")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (row[0], row[1])
        for row in _rows(_AGAINST_MATH_VERIFY)
        if row[0] == "$2$" and row[3] == "right"
    ],
)
def test_math_verify_rewards_these_wrong_answers(gold: str, answer: str) -> None:
    """The real thing, so that the page stays true when it is updated."""
    assert math_verify.verify(math_verify.parse(gold), math_verify.parse(answer))
    assert _verdict(answer, gold) == "wrong"
