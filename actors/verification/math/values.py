"""When two expressions have the same value.

Rational functions are compared exactly. Others are compared at the same points numerically, with so
many digits that a difference of the size of the smallest term would be seen with thirty digits to
spare: ``\\sqrt2 + 10^{-100}`` is not ``\\sqrt2``. Two expressions that agree at every sample point
to that precision are taken as identical; the points depend on the names of the variables alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from actors.verification.math.evaluation import (
    Evaluation,
    Value,
    context,
    sample_point,
)
from common.math_answer import tree
from common.math_answer.limits import TooLargeError
from common.math_answer.rational import Point, UndefinedValueError, rational_value

MIN_DECIMALS = 6
"""A decimal with at least so many digits may stand for an exact value that it rounds."""

NUM_POINTS = 4
_MAX_POINTS = 12
_MAX_SCALE = 1_000_000
_FIRST_DIGITS = 50
_SPARE_DIGITS = 30
_MAX_WORK = 40_000
"""Digits times nodes of one evaluation, where it takes more than the first digits."""


def same_value(answer: tree.Expression, gold: tree.Expression, *, min_decimals: int = 0) -> bool:
    """Whether the two are equal, exactly or as a decimal rounded to at least six digits.

    ``min_decimals`` lowers the six for an answer that stands beside its exact form. Raises
    :class:`AnswerError` when one has no value at all, or is too large.
    """
    if answer == gold:
        return True
    if isinstance(answer, tree.Number) and isinstance(gold, tree.Number):
        same = answer.value == gold.value
        return same or _rounds_either(answer, gold, min_decimals or MIN_DECIMALS)
    if mentions(answer, "infinity") or mentions(gold, "infinity"):
        return False
    exact = same_exactly(answer, gold)
    if exact:
        return True
    if _rounds_either(answer, gold, min_decimals or MIN_DECIMALS):
        return True
    return same_numerically(answer, gold) if exact is None else False


def same_exactly(answer: tree.Expression, gold: tree.Expression) -> bool | None:
    """Equality in rational arithmetic; None where one of them is not rational."""
    names = sorted(symbols(answer) | symbols(gold))
    scale = sampling_scale(answer, gold) if names else 1
    for index in range(NUM_POINTS if names else 1):
        point = sample_point(names, index, scale)
        mine, other = rational_value(answer, point), rational_value(gold, point)
        if mine is None or other is None:
            return None
        if mine != other:
            return False
    return True


def same_numerically(answer: tree.Expression, gold: tree.Expression) -> bool:
    """Equality at sample points to a precision that fits both expressions.

    Where one is undefined and the other is not they differ; points at which a value is too large
    are left out. Raises :class:`AnswerError` when too few points are left.
    """
    names = sorted(symbols(answer) | symbols(gold))
    if not names:
        same = _same_at(answer, gold, {})
        if same is None:
            raise UndefinedValueError("the answer has no value")
        return same
    scale, wanted = sampling_scale(answer, gold), NUM_POINTS
    for index in range(_MAX_POINTS):
        try:
            same = _same_at(answer, gold, sample_point(names, index, scale))
        except TooLargeError:
            continue
        if same is False:
            return False
        wanted -= same is True
        if not wanted:
            return True
    raise UndefinedValueError("the answer has no value at most points")


def sampling_scale(answer: tree.Expression, gold: tree.Expression) -> int:
    """The largest number in either, up to a million: what variables are compared with."""
    return min(max(1, _largest_number(answer), _largest_number(gold)), _MAX_SCALE)


def _largest_number(node: tree.Expression) -> int:
    if isinstance(node, tree.Number):
        return math.ceil(abs(node.value))
    return max(map(_largest_number, children(node)), default=0)


def _same_at(answer: tree.Expression, gold: tree.Expression, point: Point) -> bool | None:
    """None where neither is defined."""
    mine, other = _span(answer, point), _span(gold, point)
    if mine is None or other is None:
        return None if mine is other else False
    span = mine.joined(other)
    digits = digits_for(span, num_nodes(answer) + num_nodes(gold))
    difference = number(value_at(answer, point, digits)) - number(value_at(gold, point, digits))
    tolerance = context(digits).mpf(10) ** (span.smallest - _SPARE_DIGITS)
    return bool(abs(difference) < tolerance)


class Span(NamedTuple):
    """Decimal exponents of the smallest and the largest value in an expression, 1 included."""

    smallest: float
    largest: float

    def joined(self, other: Span) -> Span:
        """Of two expressions."""
        return Span(min(self.smallest, other.smallest), max(self.largest, other.largest))


def digits_for(span: Span, num_nodes: int) -> int:
    """Digits with which the smallest value shows beside the largest; raises when that is slow."""
    digits = round(span.largest - span.smallest) + _FIRST_DIGITS
    if digits > 2 * _FIRST_DIGITS and digits * num_nodes > _MAX_WORK:
        raise TooLargeError("the sizes in an answer differ too much")
    return digits


def _span(node: tree.Expression, point: Point) -> Span | None:
    """None when ``node`` is undefined there."""
    evaluation = Evaluation(point, _FIRST_DIGITS)
    try:
        evaluation.value(node)
    except UndefinedValueError:
        return None
    return Span(evaluation.smallest, evaluation.largest)


def span_at(node: tree.Expression, point: Point) -> Span:
    """Sizes in ``node``; raises :class:`UndefinedValueError` when it has no value there."""
    span = _span(node, point)
    if span is None:
        raise UndefinedValueError("the answer has no value")
    return span


def value_at(node: tree.Expression, point: Point, digits: int) -> Value:
    """The value of ``node``, to about ``digits`` digits."""
    return Evaluation(point, digits).value(node)


def real_value(node: tree.Expression) -> Value | None:
    """The value of a constant that is real, else None; for putting constants in order."""
    if symbols(node):
        return None
    digits = digits_for(span_at(node, {}), num_nodes(node))
    value = number(value_at(node, {}, digits))
    return None if context(digits).im(value) != 0 else context(digits).re(value)


def number(value: Value) -> Value:
    """A number of mpmath."""
    import mpmath

    if isinstance(value, Fraction):
        return mpmath.mp.mpf(value.numerator) / value.denominator
    return value


def _rounds_either(answer: tree.Expression, gold: tree.Expression, min_decimals: int) -> bool:
    return _rounds(answer, gold, min_decimals) or _rounds(gold, answer, MIN_DECIMALS)


def _rounds(decimal: tree.Expression, exact: tree.Expression, min_decimals: int) -> bool:
    """Whether ``decimal`` is ``exact``, rounded or cut off after that many digits or more.

    Zeros in front are no digits: 0.000000 is not a rounded form of everything small.
    """
    if not isinstance(decimal, tree.Number) or (decimal.decimals or 0) < min_decimals:
        return False
    if abs(decimal.value) * 10 ** (decimal.decimals or 0) < 10 ** (min_decimals - 1):
        return False
    if symbols(exact):
        return False
    value = rational_value(exact)
    if value is None:
        value = _as_fraction(exact, (decimal.decimals or 0) + 20)
    if value is None:
        return False
    unit = Fraction(1, 10 ** (decimal.decimals or 0))
    error = abs(decimal.value - value)
    cut_off = abs(decimal.value) <= abs(value) and decimal.value * value >= 0
    return error <= unit / 2 or (cut_off and error < unit)


def _as_fraction(node: tree.Expression, decimals: int) -> Fraction | None:
    """The value of ``node`` within ``10**-decimals``; None unless it is real."""
    span = _span(node, {})
    if span is None:
        return None
    digits = round(span.largest) + decimals + _SPARE_DIGITS
    value = number(value_at(node, {}, digits))
    mp = context(digits)
    if mp.im(value) != 0:
        return None
    return Fraction(int(mp.nint(mp.re(value) * mp.mpf(10) ** decimals)), 10**decimals)


def symbols(node: tree.Expression) -> frozenset[str]:
    """Names of the variables in ``node``."""
    if isinstance(node, tree.Symbol):
        return frozenset((node.name,))
    return frozenset().union(*map(symbols, children(node)))


def mentions(node: tree.Expression, constant: str) -> bool:
    """Whether ``constant`` occurs in ``node``."""
    if isinstance(node, tree.Constant):
        return node.name == constant
    return any(mentions(child, constant) for child in children(node))


def num_nodes(node: tree.Expression) -> int:
    """Nodes of the tree."""
    return 1 + sum(map(num_nodes, children(node)))


def children(node: tree.Expression) -> Sequence[tree.Expression]:
    """The expressions that ``node`` is made of."""
    match node:
        case tree.Sum(terms):
            return terms
        case tree.Product(factors):
            return factors
        case tree.Power(base, exponent):
            return (base, exponent)
        case tree.Call(_, arguments) | tree.Apply(_, arguments):
            return arguments
        case tree.PlusMinus(left, right):
            return (left, right)
    return ()
