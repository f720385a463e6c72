"""Answers to gold answers that have to be worked out; most decisions stand on the page."""

from __future__ import annotations

import json
import time

import pytest

from actors.verification.judgement import Check
from actors.verification.math.symbolic import (
    _POINTS,
    _differ,
    compare_symbolic,
    judge_symbolic,
    routed,
)
from common.errors import DataError
from common.math_answer.symbolic import read_symbolic
from common.references.math import SYMBOLIC_KIND
from common.types import VerdictStatus

_SUM = "\\sum_{k=1}^{10} k"


@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        (_SUM, SYMBOLIC_KIND),
        ("\\begin{vmatrix}1\\end{vmatrix}", SYMBOLIC_KIND),
        ("2", "math"),
        ("\\begin{pmatrix}1\\end{pmatrix}", "math"),
        ("\\sum_{k=1}^n a_k", "math"),
        ("\\undefined", "math"),
    ],
)
def test_only_gold_answers_that_the_grammar_leaves_to_it_go_to_math_verify(
    gold: str, kind: str
) -> None:
    check = Check(kind="math", reference_json=json.dumps({"gold": gold}))
    assert routed(check) == Check(kind=kind, reference_json=check.reference_json)
    other = Check(kind="choice", reference_json=check.reference_json)
    assert routed(other) == other


@pytest.mark.parametrize(
    "answer", ["9^{9^{9}}", "(10^9)!", "\\binom{10^9}{5\\cdot10^8}", "5 11", "1" * 300, "5^"]
)
def test_an_answer_that_the_grammar_refuses_costs_sympy_no_work(answer: str) -> None:
    compare_symbolic("54", _SUM)
    started_s = time.process_time()
    judgement = compare_symbolic(answer, _SUM)
    assert time.process_time() - started_s < 0.2
    assert (judgement.status, judgement.value) == (VerdictStatus.GRADED, 0.0)
    assert judgement.reason


@pytest.mark.parametrize(
    ("answer", "gold", "differ"),
    [
        ("55", _SUM, False),
        ("55.0000001", _SUM, True),
        ("\\frac{n^2+n}{2}", "\\sum_{k=1}^n k", False),
        ("\\frac{n^2+n+1}{2}", "\\sum_{k=1}^n k", True),
        ("n", "\\sum_{k=1}^n f(k)", False),
    ],
)
def test_values_tell_apart_what_has_values(answer: str, gold: str, differ: bool) -> None:
    found = [_differ(read_symbolic(answer), read_symbolic(gold), point) for point in _POINTS]
    assert found == [differ] * len(_POINTS)


def test_an_answer_is_looked_for_and_a_bad_gold_answer_is_no_verdict() -> None:
    reference_json = json.dumps({"gold": _SUM, "extract": ["boxed"]})
    assert judge_symbolic("so \\boxed{55}", reference_json).value == 1.0
    nothing = judge_symbolic("so <answer>55</answer>", reference_json)
    assert nothing.status is VerdictStatus.WRONG_FORMAT
    with pytest.raises(DataError, match="malformed task: gold '.*math-verify"):
        judge_symbolic("\\boxed{55}", json.dumps({"gold": "\\sum_{k=1}"}))
