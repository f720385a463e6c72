"""The gate in front of math-verify, and what it must never be asked."""

from __future__ import annotations

import json

import pytest

from common.errors import DataError
from common.math_answer import symbolic
from common.math_answer.limits import AnswerError
from common.math_answer.symbolic import (
    MAX_SYMBOLIC_CHARS,
    check_admissible,
    has_to_be_worked_out,
    is_matrix,
    read_symbolic,
)
from common.references import math as math_reference
from common.references.math import MathReference
from common.task_reference import read_reference


@pytest.mark.parametrize(
    "text",
    [
        "\\sum_{k=1}^{n} k^2",
        "$\\sum\\limits_{k = 1}^n \\frac{1}{k}$",
        "2\\prod_{i=1}^{3} (i+1)",
        "\\int_0^{\\pi} \\sin x \\, dx",
        "\\lim_{x \\to \\infty} \\frac{x}{x+1}",
        "\\det\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
        "\\begin{vmatrix}1&2\\\\3&4\\end{vmatrix}",
        "\\begin{vmatrix}a&b\\\\c&d\\end{vmatrix}",
        "\\begin{bmatrix}1&2\\end{bmatrix}\\begin{bmatrix}1\\\\2\\end{bmatrix}",
        "\\begin{pmatrix}1\\end{pmatrix} + \\begin{pmatrix}2\\end{pmatrix}",
        "x_1 + \\sum_{k=1}^{3} x_{2}",
    ],
)
def test_one_expression_or_matrix_that_has_to_be_worked_out_is_admissible(text: str) -> None:
    assert has_to_be_worked_out(text)
    check_admissible(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\\sum_{k=1}^n k = 3", "without relations"),
        ("S = \\sum_{k=1}^n k", "without relations"),
        ("\\sum_{k=1}^n k < 4", "without relations"),
        ("\\sum_{k=1=2}^n k", "without relations"),
        ("\\sum_{k=1}^n k \\le 4", "\\le cannot stand"),
        ("\\sum_{k=1}^n k, 2", "without relations and lists"),
        ("\\sum_{k=1}^n k\\%", "\\% cannot stand"),
        ("\\sum_{k=1}^n k%", "without relations"),
        ("\\{\\sum_{k=1}^n k\\}", "\\{ cannot stand"),
        ("\\sum_{k=1}^n k \\to 2", "\\to cannot stand"),
        ("\\sum_{k=1}^n a_k", "one expression"),
        ("\\sum_{k=1}^n a_{k+1}", "one expression"),
        ("\\sum_{k=1}^n k!!", "one expression"),
        ("\\sum_{k=1}^n k \\text{ cm}", "\\text cannot stand"),
        ("\\sum_{k=1}^n k or 2", "words cannot stand"),
        ("sympify(\\sum_{k=1}^n k)", "words cannot stand"),
        ("\\sum_{k=1}^n \\input{k}", "\\input cannot stand"),
        ("\\sum_{k=1}^n \\boxed{k}", "\\boxed cannot stand"),
        ("\\begin{cases}\\sum_{k=1}^n k\\end{cases}", "\\begin cannot stand|words"),
        ("\\sum_{k=1}^n k + 1234567890123", "at most 12 digits"),
        ("\\sum_{k=1}^n " + "(" * 25 + "k" + ")" * 25, "at most 24 levels"),
        ("\\sum_{k=1}^n k" + "+1" * MAX_SYMBOLIC_CHARS, "at most 400 characters"),
        ("\\sum_{k=1}^n k\x00", "control characters"),
        ("\\sum_{k=1}^n \u043a", "one expression"),
    ],
)
def test_what_math_verify_would_tidy_up_is_refused(text: str, reason: str) -> None:
    with pytest.raises(AnswerError, match=reason.replace("\\", "\\\\")):
        check_admissible(text)
    with pytest.raises(AnswerError):
        read_symbolic(text)


@pytest.mark.parametrize("text", ["2", "\\binom{n}{k}", "x = 2", "\\begin{pmatrix}1\\end{pmatrix}"])
def test_what_the_grammar_reads_does_not_have_to_be_worked_out(text: str) -> None:
    assert not has_to_be_worked_out(text)
    assert not MathReference(gold=text).is_symbolic


def test_an_expression_and_a_matrix_are_told_apart() -> None:
    product = "\\begin{pmatrix}1\\end{pmatrix}\\begin{pmatrix}2\\end{pmatrix}"
    assert is_matrix(read_symbolic(product))
    assert is_matrix(read_symbolic("\\begin{pmatrix}1\\\\2\\end{pmatrix}"))
    assert not is_matrix(read_symbolic("\\begin{vmatrix}1\\end{vmatrix}"))


@pytest.mark.parametrize("text", ["\\sum", "\\sum_{k=1}", "\\lim x"])
def test_what_math_verify_cannot_read_is_an_error_with_a_reason(text: str) -> None:
    with pytest.raises(AnswerError, match="math-verify"):
        read_symbolic(text)


def test_without_math_verify_such_a_gold_answer_is_refused_with_the_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference_json = json.dumps({"gold": "\\sum_{k=1}^n k"})
    assert read_reference(reference_json, MathReference).is_symbolic
    monkeypatch.setattr(math_reference, "is_installed", lambda: False)
    with pytest.raises(DataError, match=r"must be worked out.*pip install 'headrace\[symbolic\]'"):
        read_reference(reference_json, MathReference)


def test_whether_math_verify_is_there_is_asked_without_importing_it() -> None:
    assert symbolic.is_installed()
