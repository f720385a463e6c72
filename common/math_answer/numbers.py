"""Decimals, powers of ten, repeating decimals and mixed numbers: tokens -> exact value."""

from __future__ import annotations

from fractions import Fraction

from common.math_answer.cursor import Cursor
from common.math_answer.lexer import Token
from common.math_answer.limits import MAX_DIGITS, AnswerError
from common.math_answer.tree import Number

_LONGEST_FRACTION = 7
"""Tokens of ``\\frac{1}{2}``."""


def read_number(cursor: Cursor) -> Number:
    """Read the number that comes next, with the fraction or the repeating digits that follow."""
    token = cursor.take()
    value, decimals = _value(token)
    if cursor.next.kind == "repeating":
        return _repeating(value, decimals, cursor.take().value)
    if decimals is None and token.exponent == 0:
        fraction = _mixed_fraction(cursor)
        if fraction is not None:
            return Number(value + fraction)
    return Number(value, decimals)


def _value(token: Token) -> tuple[Fraction, int | None]:
    """Exact value, and the count of decimals, None without a point."""
    whole, point, fraction = token.value.partition(".")
    value = Fraction(int(whole + fraction), 10 ** len(fraction))
    if token.exponent:
        if abs(token.exponent) > MAX_DIGITS:
            raise AnswerError(f"a power of ten is at most {MAX_DIGITS}")
        return value * Fraction(10) ** token.exponent, None
    return value, len(fraction) if point else None


def _repeating(value: Fraction, decimals: int | None, digits: str) -> Number:
    if decimals is None:
        raise AnswerError("repeating digits must stand after a decimal point")
    tail = Fraction(int(digits), 10 ** len(digits) - 1)
    return Number(value + tail / 10**decimals)


def _mixed_fraction(cursor: Cursor) -> Fraction | None:
    """The proper fraction that makes a mixed number of the integer before it."""
    ahead = [cursor.look_ahead(distance) for distance in range(_LONGEST_FRACTION)]
    kinds = [token.value if token.kind != "number" else "number" for token in ahead]
    if kinds[:3] == ["number", "/", "number"] and ahead[0].spaced:
        places = (0, 2, 3)
    elif kinds == ["frac", "{", "number", "}", "{", "number", "}"]:
        places = (2, 5, 7)
    elif kinds[:2] == ["frac", "number"] and len(ahead[1].value) == 2:
        return _short_fraction(cursor, ahead[1].value)
    else:
        return None
    upper, lower = ahead[places[0]].value, ahead[places[1]].value
    if not (upper.isdigit() and lower.isdigit() and int(upper) < int(lower)):
        raise AnswerError("the fraction of a mixed number must be proper")
    cursor.position += places[2]
    return Fraction(int(upper), int(lower))


def _short_fraction(cursor: Cursor, digits: str) -> Fraction | None:
    """``\\frac12``."""
    if not (digits.isdigit() and digits[0] < digits[1]):
        return None
    cursor.position += 2
    return Fraction(int(digits[0]), int(digits[1]))
