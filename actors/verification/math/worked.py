"""Whether the arithmetic of an answer was done, where the gold answer is a plain number.

``123 \\cdot 456`` has the value of 56088, and a policy that is paid for it learns to copy the
question. The graders of PRM800K and of DeepScaleR ask for the integer itself, that of Hendrycks'
MATH compares text, math-verify works everything out. Here closed forms stay: one fraction, a mixed
number, powers of numbers, factorials and binomial coefficients, with one other number beside them
at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from actors.verification.math.values import MIN_DECIMALS, children, symbols
from common.math_answer import tree
from common.math_answer.rational import rational_value

MAX_OPERATIONS = 5
"""Sums, products, powers and calls in a closed form; ``\\frac{10!}{3! \\cdot 7!}`` has five."""

_NAMES = (tree.Symbol, tree.Words, tree.Apply)
_ZERO = tree.Number(Fraction(0))
_CLOSED_CALLS = frozenset(("factorial", "binomial"))


def is_worked_out(answer: tree.Answer, gold: tree.Answer) -> bool:
    """Whether no arithmetic between plain numbers is left in ``answer``.

    Only asked where ``gold`` is made of plain numbers; for every other it is True.
    """
    is_angle = isinstance(gold, tree.Quantity) and gold.unit == "degree"
    if is_angle or not all(map(_is_plain, _values(gold))):
        return True
    return all(map(_is_closed_form, _values(answer)))


def _values(answer: tree.Answer) -> Iterator[tree.Expression | None]:
    """The expressions in ``answer``, of a chain of equations the last; None for what has others."""
    match answer:
        case tree.Quantity(value):
            yield value
        case tree.Ratio(items) | tree.Listing(items) | tree.Brackets(_, items):
            for item in items:
                yield from _values(item)
        case tree.Matrix(rows):
            for row in rows:
                yield from row
        case tree.Relation() if _names_a_value(answer):
            yield from _values(_stated(answer)[-1])
        case _ if isinstance(answer, tree.EXPRESSIONS):
            yield answer
        case _:
            yield None


def _names_a_value(answer: tree.Relation) -> bool:
    """``x = 2 + 3 = 5``: a value is given a name, or calculated; not ``2x + y = 1``."""
    stated = _stated(answer)
    return (
        bool(stated)
        and set(answer.relations) <= {"=", "~"}
        and not any(isinstance(member, tree.EXPRESSIONS) and symbols(member) for member in stated)
    )


def _stated(answer: tree.Relation) -> list[tree.Answer]:
    return [member for member in answer.members if not isinstance(member, _NAMES)]


def _is_plain(value: tree.Expression | None) -> bool:
    """Whether ``value`` is an integer, a decimal or one fraction, infinity included.

    A decimal of many digits is none: it stands for what has no plain form.
    """
    if isinstance(value, tree.Number):
        return (value.decimals or 0) < MIN_DECIMALS
    if isinstance(value, tree.Product):
        return _is_quotient(value.factors) and all(
            map(_is_literal, map(_of_inverse, value.factors))
        )
    return value == tree.Constant("infinity")


def _is_closed_form(value: tree.Expression | None) -> bool:
    if value is None:
        return True
    return _num_operations(value) <= MAX_OPERATIONS and _is_worked(value)


def _is_worked(node: tree.Expression) -> bool:
    match node:
        case tree.Number():
            return True
        case tree.Constant(name):
            return name == "infinity"
        case tree.Sum(terms):
            few = sum(map(_is_number, terms)) <= 1 or _is_mixed_number(terms)
            return few and all(map(_is_worked, terms))
        case tree.Product(factors):
            return _is_quotient(factors) and all(_is_worked(_of_inverse(item)) for item in factors)
        case tree.Power(base, exponent):
            whole = isinstance(exponent, tree.Number) and exponent.value.denominator == 1
            return whole and not isinstance(base, tree.Constant) and _is_worked(base)
        case tree.PlusMinus(left, right):
            both = _is_number(left) and _is_number(right) and left != _ZERO
            return not both and _is_worked(left) and _is_worked(right)
        case tree.Call(function, arguments):
            return function in _CLOSED_CALLS and all(map(_is_literal, arguments))
    return False


def _is_mixed_number(terms: Sequence[tree.Expression]) -> bool:
    """``11 + 4/9`` and ``11 - 4/9``: an integer and a proper fraction."""
    parts = [rational_value(term) if _is_number(term) else None for term in terms]
    whole = [part for part in parts if part is not None and part.denominator == 1]
    proper = [part for part in parts if part is not None and 0 < abs(part) < 1]
    literal = any(isinstance(term, tree.Number) and term.decimals for term in terms)
    return (len(terms), len(whole), len(proper)) == (2, 1, 1) and not literal


def _is_quotient(factors: Sequence[tree.Expression]) -> bool:
    """At most one plain number above the bar and one below, which does not divide it."""
    literals = [pair for factor in factors for pair in _literals(factor, 1)]
    above = [value for value, sign in literals if sign > 0]
    below = [value for value, sign in literals if sign < 0]
    if len(above) > 1 or len(below) > 1:
        return False
    return not (above and below) or not below[0] or (above[0] / below[0]).denominator != 1


def _literals(node: tree.Expression, sign: int) -> Iterator[tuple[Fraction, int]]:
    """Plain numbers in a product other than 1, and whether they multiply (1) or divide (-1)."""
    match node:
        case tree.Number(value) if abs(value) != 1:
            yield value, sign
        case tree.Product(factors):
            for factor in factors:
                yield from _literals(factor, sign)
        case tree.Power(base, tree.Number(exponent)) if abs(exponent) == 1:
            yield from _literals(base, sign * int(exponent))


def _is_number(node: tree.Expression) -> bool:
    return _is_plain(node) and node != tree.Constant("infinity")


def _is_literal(node: tree.Expression) -> bool:
    return isinstance(node, tree.Number)


def _is_inverse(node: tree.Expression) -> bool:
    return isinstance(node, tree.Power) and node.exponent == tree.MINUS_ONE


def _of_inverse(node: tree.Expression) -> tree.Expression:
    return node.base if isinstance(node, tree.Power) and _is_inverse(node) else node


def _num_operations(node: tree.Expression) -> int:
    inner = sum(map(_num_operations, children(node)))
    match node:
        case tree.Sum(parts) | tree.Product(parts):
            return inner + len(parts) - 1
        case tree.Call():
            return inner + 1
        case tree.Power() if not _is_inverse(node):
            return inner + 1
    return inner
