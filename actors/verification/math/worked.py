"""Whether the arithmetic of an answer was done, where the gold answer is a plain number.

``123 \\cdot 456`` has the value of 56088, and a policy that is paid for it learns to copy the
question. The graders of PRM800K and of DeepScaleR ask for the integer itself, that of Hendrycks'
MATH compares text, math-verify works everything out. Here closed forms stay: one fraction, a mixed
number, powers of numbers, factorials and binomial coefficients, with one other number beside them
at most, wherever it stands. What cancels to a number that it is made of is no closed form: else
``123 \\cdot \\binom{456}{1}`` would be a way to copy the question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TypeAlias

from actors.verification.math.values import MIN_DECIMALS, children, mentions, symbols
from common.math_answer import tree
from common.math_answer.rational import rational_value

MAX_OPERATIONS = 5
"""Sums, products, powers and calls in a closed form; ``\\frac{10!}{3! \\cdot 7!}`` has five."""

_NAMES = (tree.Symbol, tree.Words, tree.Apply)
_ZERO = tree.Number(Fraction(0))
_Part: TypeAlias = tuple[tree.Expression, int]
"""A factor of a product, and whether it multiplies (1) or divides (-1)."""


def is_worked_out(answer: tree.Answer, gold: tree.Answer) -> bool:
    """Whether no arithmetic between plain numbers is left in ``answer``.

    Only asked where ``gold`` is made of plain numbers; for every other it is True. What is asked
    for in degrees may be given in radians.
    """
    if not all(map(_is_plain, _values(gold))):
        return True
    is_angle = isinstance(gold, tree.Quantity) and gold.unit == "degree"
    return all(
        _is_closed_form(value) or (is_angle and value is not None and mentions(value, "pi"))
        for value in _values(answer)
    )


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
        case tree.Relation(relations=signs) if not set(signs) <= {"=", "~"}:
            for member in _stated(answer):
                if not (isinstance(member, tree.EXPRESSIONS) and symbols(member)):
                    yield from _values(member)
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
        parts = list(_parts(value, 1))
        return all(_is_literal(part) for part, _ in parts) and not _is_left_to_do(parts)
    return value == tree.Constant("infinity")


def _is_closed_form(value: tree.Expression | None) -> bool:
    if value is None:
        return True
    if _num_operations(value) > MAX_OPERATIONS:
        return False
    if isinstance(value, tree.Call):  # ``2!`` may be a glad 2
        return _is_atom(value)
    return _is_worked(value) and _num_numbers(value) <= 1


def _is_worked(node: tree.Expression) -> bool:
    match node:
        case tree.Sum(terms):
            few = sum(map(_is_number, terms)) <= 1 or _is_mixed_number(terms)
            return few and all(map(_is_worked, terms))
        case tree.PlusMinus(left, right):
            both = _is_number(left) and _is_number(right) and left != _ZERO
            return not both and _is_worked(left) and _is_worked(right)
    parts = list(_parts(node, 1))
    return all(_is_atom(part) for part, _ in parts) and not _is_left_to_do(parts)


def _is_atom(node: tree.Expression) -> bool:
    """Whether ``node`` may be a factor of a closed form."""
    match node:
        case tree.Number():
            return True
        case tree.Constant(name):
            return name == "infinity"
        case tree.Sum():
            return _is_worked(node)
        case tree.Power(base, tree.Number(exponent)):
            is_mixed = isinstance(base, tree.Sum) and _is_mixed_number(base.terms)
            inner = isinstance(base, tree.Call | tree.Power) and _is_atom(base)
            return exponent.denominator == 1 and (is_mixed or inner or _is_plain(base))
        case tree.Call("binomial", arguments):
            return all(map(_is_literal, arguments)) and not _is_detour([(node, 1)])
        case tree.Call("factorial", arguments):
            return all(map(_is_literal, arguments))
    return False


def _is_left_to_do(parts: Sequence[_Part]) -> bool:
    """Whether the product of ``parts`` multiplies, divides or cancels plain numbers.

    Only of factorials and binomial coefficients a quotient may be an integer.
    """
    above = [part for part, sign in parts if sign > 0 and _counts(part)]
    below = [part for part, sign in parts if sign < 0 and not _is_one(part)]
    if len(above) > 1 or sum(map(_counts, below)) > 1:
        return True
    powers = [part for part, sign in parts if sign > 0 and _is_power_of_number(part)]
    if below and (above or powers or len(parts) == len(below)):
        value = _value(parts)
        if value is not None and value.denominator == 1:
            return True
    return _is_detour(parts)


def _is_detour(parts: Sequence[_Part]) -> bool:
    """Whether powers and calls lead to 1, or to an integer that they are made of.

    ``\\binom{456}{1}``, ``\\frac{456!}{455!}`` and ``1^5`` are ways to write a plain number.
    """
    closed = [pair for pair in parts if isinstance(pair[0], tree.Power | tree.Call)]
    value = _value(closed)
    if not closed or value is None or value.denominator != 1:
        return False
    largest = max(abs(number) for part, _ in closed for number in _numbers(part))
    return abs(value) <= max(largest, Fraction(1))


def _value(parts: Sequence[_Part]) -> Fraction | None:
    """The value of the product; None where it is too large, or is not rational."""
    value = Fraction(1)
    for part, sign in parts:
        factor = rational_value(part)
        if factor is None or (not factor and sign < 0):
            return None
        value *= factor**sign
    return value


def _is_mixed_number(terms: Sequence[tree.Expression]) -> bool:
    """``11 + 4/9`` and ``11 - 4/9``: an integer and a proper fraction."""
    parts = [rational_value(term) if _is_number(term) else None for term in terms]
    whole = [part for part in parts if part is not None and part.denominator == 1]
    proper = [part for part in parts if part is not None and 0 < abs(part) < 1]
    literal = any(isinstance(term, tree.Number) and term.decimals for term in terms)
    return (len(terms), len(whole), len(proper)) == (2, 1, 1) and not literal


def _parts(node: tree.Expression, sign: int) -> Iterator[_Part]:
    """Factors of ``node`` that are no products themselves."""
    match node:
        case tree.Product(factors):
            for factor in factors:
                yield from _parts(factor, sign)
        case tree.Power(base, tree.Number(exponent)) if abs(exponent) == 1:
            yield from _parts(base, sign * int(exponent))
        case _:
            yield node, sign


def _num_numbers(node: tree.Expression) -> int:
    """Plain numbers beside closed forms in ``node``; a fraction or a mixed number is one."""
    match node:
        case tree.Sum(terms):
            return 1 if _is_mixed_number(terms) else sum(map(_num_numbers, terms))
        case tree.PlusMinus(left, right):
            return _num_numbers(right) + (0 if left == _ZERO else _num_numbers(left))
    parts = list(_parts(node, 1))
    above, below = (sum(_counts(part) for part, of in parts if of == sign) for sign in (1, -1))
    inner = sum(_num_numbers(part) for part, _ in parts if isinstance(part, tree.Sum))
    return max(above, below) + inner


def _numbers(node: tree.Expression) -> Iterator[Fraction]:
    if isinstance(node, tree.Number):
        yield node.value
    for child in children(node):
        yield from _numbers(child)


def _is_power_of_number(node: tree.Expression) -> bool:
    return isinstance(node, tree.Power) and _is_plain(node.base)


def _counts(node: tree.Expression) -> bool:
    """Whether ``node`` is a plain number that changes what it is multiplied with."""
    return isinstance(node, tree.Number) and not _is_one(node)


def _is_one(node: tree.Expression) -> bool:
    return isinstance(node, tree.Number) and abs(node.value) == 1


def _is_number(node: tree.Expression) -> bool:
    return _is_plain(node) and node != tree.Constant("infinity")


def _is_literal(node: tree.Expression) -> bool:
    return isinstance(node, tree.Number)


def _num_operations(node: tree.Expression) -> int:
    inner = sum(map(_num_operations, children(node)))
    match node:
        case tree.Sum(parts) | tree.Product(parts):
            return inner + len(parts) - 1
        case tree.Call():
            return inner + 1
        case tree.Power(_, exponent) if exponent != tree.MINUS_ONE:
            return inner + 1
    return inner
