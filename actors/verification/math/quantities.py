"""When a value with a unit, or a proportion, is the gold one. Nothing is converted."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from actors.verification.math.values import same_value
from common.math_answer import tree
from common.math_answer.vocabulary import CURRENCIES

_HUNDRED = tree.Number(Fraction(100))


def same_quantity(answer: tree.Answer, gold: tree.Quantity) -> bool:
    """The same value of the same unit; the answer may leave the unit out."""
    if isinstance(answer, tree.Quantity):
        return _same_unit(answer.unit, gold.unit) and same_value(answer.value, gold.value)
    if not isinstance(answer, tree.EXPRESSIONS):
        return False
    if same_value(answer, gold.value):
        return True
    if gold.unit == "percent":
        return same_value(answer, tree.quotient(gold.value, _HUNDRED))
    return gold.unit == "degree" and same_value(answer, in_radians(gold.value))


def _same_unit(unit: str, gold_unit: str) -> bool:
    """The currency of a price may be said with what it buys or without."""
    shorter, longer = sorted((unit, gold_unit), key=len)
    is_price = shorter in CURRENCIES.values() and longer.startswith(f"{shorter} per ")
    return shorter == longer or is_price


def same_ratio(answer: tree.Ratio, gold: tree.Ratio) -> bool:
    """``3:00`` may be said without the half of the day, but not with the other."""
    same_half = not answer.half or not gold.half or answer.half == gold.half
    return same_half and _same_parts(answer.parts, gold.parts)


def in_radians(value: tree.Expression) -> tree.Expression:
    """``value`` degrees."""
    return tree.product(value, tree.Constant("degree"))


def _same_parts(parts: Sequence[tree.Expression], others: Sequence[tree.Expression]) -> bool:
    return len(parts) == len(others) and all(map(same_value, parts, others))
