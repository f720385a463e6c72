"""Random answers of known value in random spellings: the verifier is right about each pair.

The oracle is the value that the test made the spelling of, and for trees sympy, which shares no
code with the verifier.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import math_verify
import pytest
import sympy
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from actors.verification.math.evaluation import sample_point
from actors.verification.math.values import (
    same_exactly,
    same_numerically,
    same_value,
    symbols,
    value_at,
)
from actors.verification.math.verifier import compare
from common.math_answer.limits import AnswerError
from common.math_answer.rational import UndefinedValueError, rational_value
from common.math_answer.reader import read_answer
from common.math_answer.tree import EXPRESSIONS, Expression

_integers = st.integers(-999, 999)
_positive = st.integers(1, 60)
_rationals = st.builds(Fraction, _integers, _positive)
_CHOICES = st.integers(0, 8 * 32 - 1)


def _is_right(answer: str, gold: str) -> bool:
    judgement = compare(answer, gold)
    assert judgement.reason == "", (answer, gold, judgement.reason)
    return judgement.value == 1.0


def _terminating(value: Fraction) -> str | None:
    for digits in range(8):
        scaled = value * 10**digits
        if scaled.denominator == 1:
            sign = "-" if value < 0 else ""
            text = f"{abs(scaled.numerator):0{digits + 1}d}"
            return f"{sign}{text[:-digits]}.{text[-digits:]}" if digits else sign + text
    return None


def _spelling(data: st.DataObject, value: Fraction, *, worked_out: bool = False) -> str:
    """One of the ways to write ``value``, without arithmetic left to do if ``worked_out``.

    One number is drawn for all that there is to choose: to draw takes longer than to judge.
    """
    chosen, way = divmod(data.draw(_CHOICES), 32)
    dash, chosen = "-\u2212"[chosen % 2], chosen // 2
    upper, lower, times = value.numerator, value.denominator, 2 + chosen % 4
    sign, size = ("-" if upper < 0 else ""), abs(upper)
    ways = [
        f"{upper}/{lower}",
        f"\\frac{{{upper}}}{{{lower}}}",
        f"\\frac{{{-upper}}}{{{-lower}}}",
        f"{sign}\\left(\\tfrac{{{size}}}{{{lower}}}\\right)",
        f"{sign}{size} \\div {lower}",
    ]
    if lower > 1 or not worked_out:
        ways.append(f"{sign}\\dfrac{{{size * times}}}{{{lower * times}}}")
    if not worked_out:
        ways.append(f"{sign}\\sqrt{{\\frac{{{size * size}}}{{{lower * lower}}}}}")
        ways.append(f"({upper + times * lower})/{lower} - {times}")
    if decimal := _terminating(value):
        ways += [
            decimal,
            f"{decimal}{'' if '.' in decimal else '.'}00",
            re.sub(r"^(-?)0[.]", r"\1.", decimal),
        ]
    if lower > 1 and size > lower:
        ways.append(f"{sign}{size // lower}\\frac{{{size % lower}}}{{{lower}}}")
        ways.append(f"{sign}{size // lower} {size % lower}/{lower}")
    if lower == 1:
        ways += [f"{upper:,}", f"{upper:,}".replace(",", "{,}"), f"{upper:,}".replace(",", "\\,")]
    return ways[way % len(ways)].replace("-", dash)


def _worked_out(data: st.DataObject, value: Fraction) -> str:
    """A spelling that may stand in a list."""
    text = _spelling(data, value, worked_out=True)
    return text.replace(",", "{,}")


def _shifted(value: Fraction, by: int) -> Fraction:
    return value + Fraction(by, 60)


@given(st.data(), _rationals, st.integers(-3, 3))
def test_rationals_are_equal_exactly_when_their_values_are(
    data: st.DataObject, value: Fraction, shift: int
) -> None:
    other = _shifted(value, shift)
    gold, answer = _spelling(data, value), _spelling(data, other, worked_out=True)
    wrapped = data.draw(st.sampled_from(["{}", "x = {}", "${}$", " {} ", "{}.", "\\( {} \\)"]))
    assert _is_right(wrapped.format(answer), gold) is (value == other)


@given(st.data(), st.integers(1, 40), st.integers(2, 40), st.integers(-1, 1))
def test_radicals(data: st.DataObject, factor: int, radicand: int, shift: int) -> None:
    other = radicand + shift
    ways = [
        f"{factor}\\sqrt{{{other}}}",
        f"\\sqrt{{{factor * factor * other}}}",
        f"\\frac{{{factor * other}}}{{\\sqrt{{{other}}}}}",
        f"{factor} \\cdot {other}^{{1/2}}",
        f"({factor * factor * other})^{{0.5}}",
        f"\\sqrt{{{other}}} \\times {factor}",
        f"{factor}*sqrt({other})",
        f"\\sqrt[4]{{{factor**4 * other**2}}}",
        f"{factor}e^{{\\frac{{\\ln {other}}}{{2}}}}",
    ]
    answer = data.draw(st.sampled_from(ways))
    assert _is_right(answer, f"{factor}\\sqrt{{{radicand}}}") is (shift == 0)


@given(
    st.data(), st.lists(st.integers(-9, 9), min_size=1, max_size=4), st.integers(-2, 2), _positive
)
def test_polynomials(data: st.DataObject, roots: list[int], change: int, leading: int) -> None:
    x = sympy.Symbol("x")
    expanded = sympy.Poly(leading * sympy.prod(x - root for root in roots), x)
    terms = [int(c) for c in expanded.all_coeffs()]
    place = data.draw(st.integers(0, len(terms) - 1))
    terms[place] += change
    degree = len(terms) - 1
    written = " ".join(f"{c:+d}x^{{{degree - i}}}" for i, c in enumerate(terms))
    factored = f"{leading}" + "".join(
        f"(x{-root:+d})" for root in data.draw(st.permutations(roots))
    )
    assert _is_right(written, factored) is (change == 0)
    assert _is_right(factored, written) is (change == 0)


@given(st.data(), st.lists(_rationals, min_size=2, max_size=6, unique=True), st.booleans())
def test_sets_and_lists(data: st.DataObject, values: list[Fraction], change: bool) -> None:
    others = data.draw(st.permutations(values))
    if change:
        others = [others[0] + 1000, *others[1:]]
    gold = ", ".join(_spelling(data, value).replace(",", "{,}") for value in values)
    answer = ", ".join(_worked_out(data, value) for value in others)
    for frame in ("{}", "\\{{{}\\}}"):
        assert _is_right(frame.format(answer), f"\\{{{gold}\\}}") is not change
        assert _is_right(frame.format(answer), gold) is not change


@given(st.data(), st.lists(_rationals, min_size=2, max_size=5))
def test_tuples_have_an_order(data: st.DataObject, values: list[Fraction]) -> None:
    others = data.draw(st.permutations(values))
    gold = ", ".join(_spelling(data, value).replace(",", "{,}") for value in values)
    answer = ", ".join(_worked_out(data, value) for value in others)
    assert _is_right(f"\\left( {answer} \\right)", f"({gold})") is (others == values)


@given(st.data(), _rationals, _rationals, st.sampled_from(["()", "[]", "(]", "[)"]))
def test_intervals_and_inequalities(
    data: st.DataObject, low: Fraction, high: Fraction, ends: str
) -> None:
    assume(low < high)
    left, right = _spelling(data, low), _spelling(data, high)
    left, right = left.replace(",", "{,}"), right.replace(",", "{,}")
    gold = f"{ends[0]}{left}, {right}{ends[1]}"
    below, above = ("<" if ends[0] == "(" else "\\le"), ("<" if ends[1] == ")" else "\\leq")
    assert _is_right(f"{left} {below} x {above} {right}", gold)
    assert _is_right(f"x \\in {gold}", gold)
    other = ends[0] + f"{left}, {right}" + ("]" if ends[1] == ")" else ")")
    assert not _is_right(other, gold)


@given(
    st.data(),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(["pmatrix", "bmatrix", "array"]),
)
def test_matrices(data: st.DataObject, rows: int, columns: int, environment: str) -> None:
    values = [[data.draw(_rationals) for _ in range(columns)] for _ in range(rows)]
    gold = _matrix(data, values, "pmatrix")
    assert _is_right(_matrix(data, values, environment), gold)
    values[rows - 1][0] += 1
    assert not _is_right(_matrix(data, values, environment), gold)


def _matrix(data: st.DataObject, values: list[list[Fraction]], environment: str) -> str:
    rows = (" & ".join(_spelling(data, value, worked_out=True) for value in row) for row in values)
    columns = "{" + "c" * len(values[0]) + "}" if environment == "array" else ""
    frame = ("\\left[", "\\right]") if environment == "array" else ("", "")
    body = f"\\begin{{{environment}}}{columns} " + " \\\\ ".join(rows) + f" \\end{{{environment}}}"
    return frame[0] + body.replace(",", "{,}") + frame[1]


_LEAVES = st.one_of(
    st.integers(1, 9).map(lambda n: (str(n), sympy.Integer(n))),
    st.sampled_from([("x", sympy.Symbol("x")), ("y", sympy.Symbol("y")), ("\\pi", sympy.pi)]),
)


def _combined(children: Any) -> Any:
    pairs = st.tuples(children, children)
    return st.one_of(
        pairs.map(lambda p: (f"({p[0][0]} + {p[1][0]})", p[0][1] + p[1][1])),
        pairs.map(lambda p: (f"({p[0][0]} - {p[1][0]})", p[0][1] - p[1][1])),
        pairs.map(lambda p: (f"{p[0][0]} \\cdot {p[1][0]}", p[0][1] * p[1][1])),
        pairs.map(lambda p: (f"\\frac{{{p[0][0]}}}{{{p[1][0]}}}", _divided(p[0][1], p[1][1]))),
        st.tuples(children, st.integers(1, 3)).map(
            lambda p: (f"\\left({p[0][0]}\\right)^{{{p[1]}}}", p[0][1] ** p[1])
        ),
        children.map(lambda p: (f"\\sqrt{{{p[0]}}}", sympy.sqrt(p[1]))),
        children.map(lambda p: (f"\\cos({p[0]})", sympy.cos(p[1]))),
        children.map(lambda p: (f"\\left|{p[0]}\\right|", sympy.Abs(p[1]))),
        children.map(lambda p: (f"(-{p[0]})", -p[1])),
    )


def _divided(upper: Any, lower: Any) -> Any:
    return sympy.nan if lower == 0 else upper / lower


_TREES = st.recursive(_LEAVES, _combined, max_leaves=8)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_TREES)
def test_values_are_those_of_sympy(pair: tuple[str, Any]) -> None:
    latex, expression = pair
    assume(not expression.has(sympy.nan, sympy.zoo))
    tree = read_answer(latex)
    assert isinstance(tree, EXPRESSIONS)
    point = sample_point(("x", "y"), 0)
    substituted = {
        sympy.Symbol(name): sympy.Rational(value.numerator, value.denominator)
        for name, value in point.items()
    }
    expected = sympy.N(expression.subs(substituted), 30)
    assume(expected.is_finite)
    try:
        mine = value_at(tree, point, 40)
    except UndefinedValueError:
        assert expected.has(sympy.nan, sympy.zoo) or abs(expected) > 1e20
        return
    except AnswerError:
        return
    difference = sympy.Abs(sympy.sympify(mine) - expected)
    assert difference <= 1e-20 * max(1, abs(expected))


def _expression(latex: str) -> Expression:
    tree = read_answer(latex)
    assert isinstance(tree, EXPRESSIONS)
    return tree


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(_TREES, _TREES, st.booleans())
def test_the_exact_and_the_numerical_path_agree_wherever_both_answer(
    first: tuple[str, Any], second: tuple[str, Any], same: bool
) -> None:
    answer = _expression(f"{first[0]} + {second[0]}")
    gold = _expression(f"{second[0]} + {first[0]}" if same else f"{first[0]} \\cdot {second[0]}")
    try:
        exact = same_exactly(answer, gold)
        numeric = same_numerically(answer, gold)
    except AnswerError:
        return
    if exact is not None:
        assert exact == numeric
    if same:
        assert numeric
        assert same_value(answer, gold)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_TREES)
def test_an_exact_value_is_found_only_where_there_are_no_variables(pair: tuple[str, Any]) -> None:
    tree = _expression(pair[0])
    try:
        value = rational_value(tree)
    except AnswerError:
        return
    if value is not None:
        assert not symbols(tree)
        assert sympy.simplify(pair[1] - sympy.Rational(value.numerator, value.denominator)) == 0


@pytest.mark.slow
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), _rationals, st.integers(-1, 1))
def test_math_verify_says_the_same_of_rationals(
    data: st.DataObject, value: Fraction, shift: int
) -> None:
    gold = _spelling(data, value)
    answer = _spelling(data, _shifted(value, shift), worked_out=True)
    assume(not re.search(r"\\div|\\,|\d \d", gold + answer))  # spellings that it does not read
    gold, answer = gold.replace("\u2212", "-"), answer.replace("\u2212", "-")
    theirs = math_verify.verify(
        math_verify.parse(f"\\boxed{{{gold}}}"), math_verify.parse(f"\\boxed{{{answer}}}")
    )
    assert _is_right(answer, gold) is bool(theirs)
