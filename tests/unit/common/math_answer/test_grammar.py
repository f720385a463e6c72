"""The grammar as such; what is right and wrong stands in docs/math-answers.md."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from fractions import Fraction

import pytest

from common.math_answer import plain_numbers
from common.math_answer.limits import MAX_ANSWER_BYTES, MAX_DEPTH, AnswerError
from common.math_answer.magnitude import size_bound
from common.math_answer.plain_numbers import read_plain
from common.math_answer.rational import rational_value
from common.math_answer.reader import read_answer
from common.math_answer.tree import EXPRESSIONS, Expression, Number, Power, Product, Sum, Symbol
from common.math_answer.units import unit_name

_TWO, _X = Number(Fraction(2)), Symbol("x")


def _expression(text: str) -> Expression:
    tree = read_answer(text)
    assert isinstance(tree, EXPRESSIONS)
    return tree


@pytest.mark.parametrize("text", ["0", "7", "-12", "007", "3.50", "-0.125", "12345678901234567890"])
def test_the_way_for_plain_numbers_says_what_the_grammar_says(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = read_answer(text)
    monkeypatch.setattr(plain_numbers, "_PLAIN_NUMBER", re.compile("(?!)()()"))
    assert read_answer(text) == short
    assert short == Number(Fraction(text), len(text.partition(".")[2]) or None)


@pytest.mark.parametrize(
    "text", ["1/2", "0/3", "1/0", "007/10", "\\frac{3}{4}", "\\dfrac{12}{1}", "\\tfrac{0}{0}"]
)
def test_the_way_for_plain_fractions_says_what_the_grammar_says(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_plain(text) is not None
    short = read_answer(text)
    monkeypatch.setattr(plain_numbers, "_PLAIN_FRACTION", re.compile("(?!)()()()()"))
    assert read_answer(text) == short


def test_signs_products_and_powers_nest_as_written() -> None:
    assert _expression("2x^2") == Product((_TWO, Power(_X, _TWO)))
    assert _expression("2^{x^2}") == _expression("2^x^2") == Power(_TWO, Power(_X, _TWO))
    assert _expression("-x^2") == Product((Number(Fraction(-1)), Power(_X, _TWO)))
    assert _expression("x+2-x") == Sum((_X, _TWO, Product((Number(Fraction(-1)), _X))))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+3\\cdot4", 14),
        ("(2+3)4", None),
        ("4(2+3)", 20),
        ("2-3-4", -5),
        ("24/4/2", 3),
        ("24/4\\cdot2", 12),
        ("-2^2", -4),
        ("(-2)^2", 4),
        ("2^{-1}", Fraction(1, 2)),
        ("2^-1", Fraction(1, 2)),
        ("|2-5|", 3),
        ("||2-5|-4|", 1),
        ("|2||{-3}|", 6),
        ("\\frac{1}{2}\\div\\frac{1}{4}", 2),
        ("\\sqrt[3]{27}", 3),
        ("\\lceil 1/3 \\rceil - \\lfloor -1/3 \\rfloor", 2),
        ("\\frac{8!}{6!}", 56),
        ("0.1\\overline{6}", Fraction(1, 6)),
    ],
)
def test_arithmetic_follows_the_rules_of_precedence(text: str, value: Fraction | None) -> None:
    if value is None:
        with pytest.raises(AnswerError):
            read_answer(text)
    else:
        assert rational_value(_expression(text)) == value


@pytest.mark.parametrize("length", [MAX_ANSWER_BYTES, MAX_ANSWER_BYTES + 1])
def test_the_limit_on_bytes_is_exact(length: int) -> None:
    text = "x" + " " * (length - 1)
    if length > MAX_ANSWER_BYTES:
        with pytest.raises(AnswerError, match="at most 4096 bytes"):
            read_answer(text)
    else:
        assert read_answer(text) == _X


def test_the_limit_on_depth_is_exact() -> None:
    depth = MAX_DEPTH // 2  # parentheses count twice: as a bracket and as what may stand in one
    assert read_answer("(" * depth + "x" + ")" * depth) == _X
    with pytest.raises(AnswerError, match="levels deep"):
        read_answer("(" * (depth + 1) + "x" + ")" * (depth + 1))


@pytest.mark.parametrize(
    "text",
    ["2^{100}", "10^{-300}", "\\frac{3^{50}}{7^{20}}", "(2/3)^{-40}", "20!", "\\binom{100}{50}"],
)
def test_the_size_of_a_value_is_within_its_bound(text: str) -> None:
    tree = _expression(text)
    value = rational_value(tree)
    assert value is not None
    bound = size_bound(tree)
    assert math.log10(abs(value.numerator)) <= bound.upper + 1e-9
    assert math.log10(value.denominator) <= bound.lower + 1e-9


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("cm", "centimeter"),
        ("centimeters", "centimeter"),
        ("cm^2", "centimeter^2"),
        ("sq cm", "centimeter^2"),
        ("square centimetres", "centimeter^2"),
        ("cubic feet", "foot^3"),
        ("miles per hour", "mile per hour"),
        ("mi/h", "mile per h"),
        ("red marbles", "red marble"),
    ],
)
def test_spellings_of_a_unit_have_one_name(words: str, name: str) -> None:
    assert unit_name(words) == name


@pytest.mark.parametrize(
    "words", ["", "million", "or more", "a b c d e", "square", "5", "k", "cm4"]
)
def test_words_that_change_the_number_are_no_unit(words: str) -> None:
    with pytest.raises(AnswerError):
        unit_name(words)


def test_the_grammar_imports_nothing_heavy() -> None:
    code = (
        "import sys, common.task_reference;"
        "assert not {'mpmath', 'sympy', 'numpy', 'actors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
