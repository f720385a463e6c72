"""Bounds on the size of values, found without computing them: a tower of powers costs nothing.

The size of a value is bounded by decimal digits above and below the fraction bar, as if everything
were rational; a variable counts as at most 4, as at the points where the verifier evaluates.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

from common.math_answer import tree
from common.math_answer.limits import MAX_EXPONENT, MAX_FACTORIAL, MAX_LOG10, AnswerError

_LOG10_MAX_EXPONENT = math.log10(MAX_EXPONENT)


class Size(NamedTuple):
    """Upper bounds of log10 of numerator and denominator."""

    upper: float
    lower: float


_OF_CONSTANT, _OF_SYMBOL = Size(0.5, 0.5), Size(math.log10(4.0), math.log10(4.0))


def check_magnitude(answer: tree.Answer) -> None:
    """Raise :class:`AnswerError` when a value in ``answer`` may be too large to compute."""
    for expression in expressions_in(answer):
        size_bound(expression)


def expressions_in(answer: tree.Answer) -> list[tree.Expression]:
    """All expressions of ``answer``, not their parts."""
    if isinstance(answer, tree.EXPRESSIONS):
        return [answer]
    if isinstance(answer, tree.Quantity):
        return [answer.value]
    if isinstance(answer, tree.Matrix):
        return [entry for row in answer.rows for entry in row]
    return [inner for part in _parts(answer) for inner in expressions_in(part)]


def _parts(answer: tree.Answer) -> tuple[tree.Answer, ...]:
    if isinstance(answer, tree.Listing | tree.Brackets):
        return answer.items
    if isinstance(answer, tree.Combination | tree.Ratio):
        return answer.parts
    return answer.members if isinstance(answer, tree.Relation) else ()


def size_bound(node: tree.Expression) -> Size:
    """Bound on the size of ``node``; raises :class:`AnswerError` over the limit."""
    bound = _bound(node)
    if max(bound) > MAX_LOG10:
        raise AnswerError(f"a value has at most {MAX_LOG10:g} digits")
    return bound


def _bound(node: tree.Expression) -> Size:
    match node:
        case tree.Number(value):
            return _of_fraction(value)
        case tree.Constant():
            return _OF_CONSTANT
        case tree.Symbol():
            return _OF_SYMBOL
        case tree.Sum(terms):
            return _of_sum([size_bound(term) for term in terms])
        case tree.PlusMinus(left, right):
            return _of_sum([size_bound(left), size_bound(right)])
        case tree.Product(factors):
            sizes = [size_bound(factor) for factor in factors]
            return Size(sum(size.upper for size in sizes), sum(size.lower for size in sizes))
        case tree.Power(base, exponent):
            return _of_power(size_bound(base), exponent)
        case tree.Apply(_, arguments):
            return Size(max(size_bound(argument).upper for argument in arguments) * 5 + 4, 0.0)
        case tree.Call(function, arguments):
            return _of_call(function, [size_bound(argument) for argument in arguments])


def _of_sum(sizes: list[Size]) -> Size:
    lower = sum(size.lower for size in sizes)
    return Size(max(size.upper for size in sizes) + lower + math.log10(len(sizes)), lower)


def _of_power(base: Size, exponent: tree.Expression) -> Size:
    if isinstance(exponent, tree.Number):
        times = float(abs(exponent.value))
        if times > MAX_EXPONENT:
            raise AnswerError(f"an exponent is at most {MAX_EXPONENT}")
        power = Size(times * base.upper, times * base.lower)
        return power if exponent.value >= 0 else Size(power.lower, power.upper)
    largest = _checked_exponent(size_bound(exponent).upper) * max(*base, 0.5)
    return Size(largest, largest)


def _checked_exponent(log10_exponent: float) -> float:
    """The exponent itself; raises :class:`AnswerError` over the limit."""
    if log10_exponent > _LOG10_MAX_EXPONENT:
        raise AnswerError(f"an exponent is at most {MAX_EXPONENT}")
    return float(10.0**log10_exponent)


def _of_call(function: str, sizes: list[Size]) -> Size:
    upper, lower = max(size.upper for size in sizes), max(size.lower for size in sizes)
    if function in ("factorial", "binomial"):
        if upper > math.log10(MAX_FACTORIAL) + 1e-9:
            raise AnswerError(f"a factorial is of {MAX_FACTORIAL} at most")
        return Size(10.0**upper * max(upper, 0.5), 0.0)
    if function in ("sinh", "cosh"):
        return Size(_checked_exponent(upper), _checked_exponent(upper))
    if function in ("gcd", "lcm"):
        return Size(sum(size.upper for size in sizes), 0.0)
    return Size(max(upper, 2.0), max(lower, 2.0))


def _of_fraction(value: Fraction) -> Size:
    return Size(math.log10(abs(value.numerator) or 1), math.log10(value.denominator))
