"""Exact values by integer arithmetic: what most answers are, and all that most need.

Variables may be given rational values, so that two rational functions are compared exactly, point
by point, without any algebra (Schwartz 1980, Zippel 1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from common.math_answer import tree
from common.math_answer.limits import MAX_FACTORIAL, AnswerError

MAX_BITS = 1 << 15
"""Of a numerator or denominator; larger powers are left to floating point."""

Point = Mapping[str, Fraction]


class UndefinedValueError(AnswerError):
    """The expression has no value: it divides by zero, or is outside of a function's domain."""


def rational_value(node: tree.Expression, point: Point | None = None) -> Fraction | None:
    """The exact value at ``point``; None unless it is rational by arithmetic alone.

    Raises :class:`UndefinedValueError` for a division by zero.
    """
    match node:
        case tree.Number(value):
            return value
        case tree.Symbol(name):
            return None if point is None else point.get(name)
        case tree.Sum(terms):
            values = _values(terms, point)
            return None if values is None else sum(values, Fraction(0))
        case tree.Product(factors):
            values = _values(factors, point)
            return None if values is None else math.prod(values, start=Fraction(1))
        case tree.Power(base, exponent):
            values = _values((base, exponent), point)
            return None if values is None else rational_power(*values)
        case tree.Call(function, arguments):
            values = _values(arguments, point)
            return None if values is None else rational_call(function, values)
    return None


def rational_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    """``base`` to an integer ``exponent``; None for others and where the result is too long."""
    if base == 0 and exponent <= 0:
        raise UndefinedValueError("the answer divides by zero")
    if exponent.denominator != 1:
        return None
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent.numerator) > MAX_BITS and abs(base) != 1:
        return None
    return base**exponent.numerator


def rational_call(function: str, values: list[Fraction]) -> Fraction | None:
    """A function whose value is rational for these arguments, None for all others."""
    first = values[0]
    if function == "root":
        return _exact_root(first, values[1])
    if function == "abs":
        return abs(first)
    if function in ("floor", "ceil"):
        return Fraction(math.floor(first) if function == "floor" else math.ceil(first))
    if function in ("min", "max"):
        return min(values) if function == "min" else max(values)
    integers = [value.numerator for value in values if value.denominator == 1]
    if len(integers) < len(values):
        return None
    if function in ("gcd", "lcm"):
        return Fraction(math.gcd(*integers) if function == "gcd" else math.lcm(*integers))
    if function in ("factorial", "binomial"):
        return _counted(function, integers)
    return None


def _counted(function: str, integers: list[int]) -> Fraction:
    if min(integers) < 0:
        raise UndefinedValueError(f"a {function} of a negative number is not defined")
    if max(integers) > MAX_FACTORIAL:
        raise AnswerError(f"a factorial is of {MAX_FACTORIAL} at most")
    if function == "factorial":
        return Fraction(math.factorial(integers[0]))
    return Fraction(math.comb(integers[0], integers[1]))


def _values(nodes: tuple[tree.Expression, ...], point: Point | None) -> list[Fraction] | None:
    values = []
    for node in nodes:
        value = rational_value(node, point)
        if value is None:
            return None
        values.append(value)
    return values


def _exact_root(radicand: Fraction, degree: Fraction) -> Fraction | None:
    if degree.denominator != 1 or degree < 2:
        return None
    negative = radicand < 0
    if negative and degree.numerator % 2 == 0:
        return None
    upper = _integer_root(abs(radicand.numerator), degree.numerator)
    lower = _integer_root(radicand.denominator, degree.numerator)
    if upper is None or lower is None:
        return None
    return Fraction(-upper if negative else upper, lower)


def _integer_root(number: int, degree: int) -> int | None:
    if degree == 2:
        guess = math.isqrt(number)
    elif number.bit_length() > 1000:
        return None
    else:
        guess = round(number ** (1 / degree))
    return guess if degree * guess.bit_length() < MAX_BITS and guess**degree == number else None
