"""When two equations or inequalities say the same.

``l = r`` and ``c l = c r`` are the same for a constant c other than zero, ``l < r`` and
``c l < c r`` for a positive one: the differences of the sides are compared at sample points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.verification.math.evaluation import context, sample_point
from actors.verification.math.values import (
    digits_for,
    num_nodes,
    number,
    sampling_scale,
    span_at,
    symbols,
    value_at,
)
from common.math_answer import tree
from common.math_answer.limits import AnswerError, TooLargeError
from common.math_answer.rational import Point, UndefinedValueError

_SPARE_DIGITS = 20
_NUM_POINTS = 4
_MAX_POINTS = 12
_TURNED = {">": "<", ">=": "<="}

_Comparison = tuple[tree.Expression, str]
"""A difference, and its relation to zero: ``=``, ``!=``, ``<`` or ``<=``."""


def same_relation(answer: tree.Relation, gold: tree.Relation) -> bool:
    """Whether each comparison of one chain is a comparison of the other."""
    mine, others = _comparisons(answer), _comparisons(gold)
    if mine is None or others is None or len(mine) != len(others):
        return False
    left = list(mine)
    for other in others:
        place = next((i for i, item in enumerate(left) if _same_comparison(item, other)), None)
        if place is None:
            return False
        del left[place]
    return True


def _comparisons(relation: tree.Relation) -> list[_Comparison] | None:
    found: list[_Comparison] = []
    pairs = zip(relation.members, relation.members[1:], relation.relations, strict=False)
    for first, second, sign in pairs:
        if not isinstance(first, tree.EXPRESSIONS) or not isinstance(second, tree.EXPRESSIONS):
            return None
        if sign in _TURNED:
            first, second, sign = second, first, _TURNED[sign]
        if sign not in ("=", "!=", "<", "<="):
            return None
        found.append((tree.total(first, tree.negated(second)), sign))
    return found


def _same_comparison(mine: _Comparison, other: _Comparison) -> bool:
    if mine[1] != other[1]:
        return False
    names = sorted(symbols(mine[0]) | symbols(other[0]))
    if symbols(mine[0]) != symbols(other[0]):
        return False
    return _is_multiple(mine[0], other[0], names, positive=mine[1] in ("<", "<="))


def _is_multiple(
    mine: tree.Expression, other: tree.Expression, names: Sequence[str], *, positive: bool
) -> bool:
    """Whether ``mine / other`` is one constant at all sample points, neither ever being zero."""
    first: Any = None
    compared = 0
    scale = sampling_scale(mine, other)
    for index in range(_MAX_POINTS):
        try:
            ratio, tolerance = _ratio(mine, other, sample_point(names, index, scale))
        except (UndefinedValueError, TooLargeError):
            continue
        if ratio is None or (first is not None and abs(ratio - first) > abs(first) * tolerance):
            return False
        first = ratio if first is None else first
        compared += 1
        if compared == _NUM_POINTS:
            break
    if compared < _NUM_POINTS:
        raise AnswerError("an equation has no values to compare")
    is_positive = bool(first.imag == 0 and first.real > 0)
    return is_positive or not positive


def _ratio(mine: tree.Expression, other: tree.Expression, point: Point) -> tuple[Any, Any]:
    """The ratio, None where either side is zero, and how far equal ratios may be apart."""
    span = span_at(mine, point).joined(span_at(other, point))
    digits = 2 * digits_for(span, num_nodes(mine) + num_nodes(other))
    upper, lower = value_at(mine, point, digits), value_at(other, point, digits)
    mp = context(digits)
    if upper == 0 or lower == 0:
        return None, None
    tolerance = mp.mpf(10) ** (span.smallest - span.largest - _SPARE_DIGITS)
    return mp.mpc(number(upper)) / number(lower), tolerance
