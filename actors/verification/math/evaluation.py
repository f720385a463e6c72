"""Values of expressions: exact where arithmetic stays rational, otherwise to any precision.

mpmath is imported by the first expression that needs it. Its numbers have no largest exponent, so
the size of every power is bounded before it is computed. Sums that cancel to nothing within the
working precision are taken as zero, which keeps ``1/(\\sqrt2\\sqrt2-2)`` undefined.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, TypeAlias

from common.math_answer import tree
from common.math_answer.limits import MAX_FACTORIAL, MAX_LOG10, AnswerError, TooLargeError
from common.math_answer.rational import (
    Point,
    UndefinedValueError,
    rational_call,
    rational_power,
)

Value: TypeAlias = Any
"""A :class:`Fraction`, or a real or complex number of mpmath, which has no types."""

MAX_CALLS = 400
"""Functions, powers and roots that one evaluation may compute."""

_GUARD_DIGITS = 15
_MAX_GAMMA_DIGITS = 200
"""Beyond, the gamma function takes a second to prepare."""

_LN10 = math.log(10)
_NUM_COEFFICIENTS = 6


class Evaluation:
    """Evaluates expressions at one point with ``digits`` decimal digits.

    ``smallest`` and ``largest`` are the decimal exponents of the values that occurred; a number
    counts as its last decimal, too, so that a long decimal is compared to its end.
    """

    def __init__(self, point: Point, digits: int) -> None:
        self._point = point
        self._digits = digits
        self._calls = 0
        self.smallest = 0.0
        self.largest = 0.0

    def value(self, node: tree.Expression) -> Value:
        """The value of ``node``; raises :class:`AnswerError` when it has none, or is too large."""
        value = self._value(node)
        size = log10_size(value)
        if size is not None:
            if abs(size) > MAX_LOG10:
                raise TooLargeError(f"a value has at most {MAX_LOG10:g} digits")
            self.smallest = min(self.smallest, size)
            self.largest = max(self.largest, size)
        return value

    def _value(self, node: tree.Expression) -> Value:
        match node:
            case tree.Number(value):
                self.smallest = min(self.smallest, -math.log10(value.denominator))
                return value
            case tree.Symbol(name):
                return self._point[name]
            case tree.Constant(name):
                return self._constant(name)
            case tree.Sum(terms):
                return self._sum([self.value(term) for term in terms])
            case tree.Product(factors):
                return self._product([self.value(factor) for factor in factors])
            case tree.Power(base, exponent):
                self._count_call()
                return self._power(self.value(base), self.value(exponent))
            case tree.Call(function, arguments):
                self._count_call()
                return self._call(function, [self.value(argument) for argument in arguments])
            case tree.Apply(function, arguments):
                return self._apply(function, [self.value(argument) for argument in arguments])
        raise AnswerError("an expression with \\pm has two values")

    def _count_call(self) -> None:
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise AnswerError(f"an answer has at most {MAX_CALLS} powers and functions")

    def _constant(self, name: str) -> Value:
        mp = context(self._digits)
        if name == "infinity":
            raise UndefinedValueError("infinity is no value")
        values = {"pi": mp.pi, "e": mp.e, "i": mp.mpc(0, 1), "degree": mp.pi / 180}
        return +values[name]

    def _sum(self, values: Sequence[Value]) -> Value:
        if all(isinstance(value, Fraction) for value in values):
            return sum(values, Fraction(0))
        mp = context(self._digits)
        terms = [_inexact(mp, value) for value in values]
        result = mp.fsum(terms)
        noise = max(map(abs, terms)) * mp.mpf(10) ** (_GUARD_DIGITS - self._digits)
        return Fraction(0) if abs(result) <= noise else result

    def _product(self, values: Sequence[Value]) -> Value:
        if all(isinstance(value, Fraction) for value in values):
            return math.prod(values, start=Fraction(1))
        if any(value == 0 for value in values):
            return Fraction(0)
        mp = context(self._digits)
        return mp.fprod(_inexact(mp, value) for value in values)

    def _power(self, base: Value, exponent: Value) -> Value:
        if isinstance(base, Fraction) and isinstance(exponent, Fraction):
            exact = rational_power(base, exponent)
            if exact is not None:
                return exact
        if base == 0:
            return self._power_of_zero(exponent)
        mp = context(self._digits)
        inexact = _inexact(mp, base)
        size = abs(mp.log(inexact)) * abs(_inexact(mp, exponent))
        if size > MAX_LOG10 * _LN10:
            raise TooLargeError(f"a value has at most {MAX_LOG10:g} digits")
        if isinstance(exponent, Fraction):
            return self._rational_power(inexact, exponent)
        return mp.power(inexact, _inexact(mp, exponent))

    def _power_of_zero(self, exponent: Value) -> Value:
        if isinstance(exponent, Fraction) and exponent > 0:
            return Fraction(0)
        raise UndefinedValueError("the answer divides by zero")

    def _rational_power(self, base: Value, exponent: Fraction) -> Value:
        """Real for a negative base where the denominator is odd, as schools have it."""
        mp = context(self._digits)
        if exponent.denominator == 1:
            return base**exponent.numerator
        real = mp.im(base) == 0
        if real and mp.re(base) < 0 and exponent.denominator % 2:
            sign = -1 if exponent.numerator % 2 else 1
            return sign * mp.power(-mp.re(base), _inexact(mp, exponent))
        return mp.power(base, _inexact(mp, exponent))

    def _call(self, function: str, values: list[Value]) -> Value:
        if all(isinstance(value, Fraction) for value in values):
            exact = rational_call(function, values)
            if exact is not None:
                return exact
        mp = context(self._digits)
        if function == "root":
            degree = values[1]
            if not isinstance(degree, Fraction) or degree == 0:
                raise UndefinedValueError("the degree of a root must be a number")
            return self._power(values[0], 1 / degree)
        numbers = [_inexact(mp, value) for value in values]
        if function in ("factorial", "binomial") and self._digits > _MAX_GAMMA_DIGITS:
            raise TooLargeError(f"a factorial has at most {_MAX_GAMMA_DIGITS} digits there")
        _check_growth(mp, function, numbers)
        try:
            return _compute(mp, function, numbers)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise UndefinedValueError(f"{function} is not defined there") from None

    def _apply(self, function: str, values: list[Value]) -> Value:
        """An unknown function is some smooth function: a polynomial that its name picks."""
        mp = context(self._digits)
        result = mp.mpf(0)
        for place, value in enumerate(values):
            inexact = _inexact(mp, value)
            for power in range(_NUM_COEFFICIENTS):
                result += _pseudo_random(f"{function}/{place}/{power}") * inexact**power
        return result


def context(digits: int) -> Any:
    """mpmath's context, set to ``digits``."""
    import mpmath

    mpmath.mp.dps = digits
    return mpmath.mp


def sample_point(names: Sequence[str], index: int, scale: int = 1) -> dict[str, Fraction]:
    """Values that only name, index and scale decide.

    Those of even index lie between 0.3 and 3.7; those of odd index are larger than ``scale``, up
    to four times, so that ``|x - 1000|`` is seen on both sides. Signs alternate with every second
    index.
    """
    point = {}
    for name in names:
        raw = _pseudo_random(f"{name}#{index}")
        size = (1 + abs(raw)) * scale if index % 2 else abs(raw)
        turned = (index // 2 + (_pseudo_random(name) > 0)) % 2
        point[name] = -size if turned else size
    return point


def log10_size(value: Value) -> float | None:
    """Decimal exponent of the absolute value, None of zero."""
    if value == 0:
        return None
    if isinstance(value, Fraction):
        return math.log10(abs(value.numerator)) - math.log10(value.denominator)
    import mpmath

    return float(mpmath.mp.mag(value)) * math.log10(2)


def _pseudo_random(text: str) -> Fraction:
    raw = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
    value = Fraction(3, 10) + Fraction(34, 10) * Fraction(raw >> 1, 1 << 31)
    return value if raw & 1 else -value


def _inexact(mp: Any, value: Value) -> Value:
    if isinstance(value, Fraction):
        return mp.mpf(value.numerator) / value.denominator
    return value


def _check_growth(mp: Any, function: str, numbers: Sequence[Value]) -> None:
    """Refuse arguments for which a function is slow, or grows too large."""
    for number in numbers:
        if function in ("factorial", "binomial") and abs(number) > MAX_FACTORIAL:
            raise TooLargeError(f"a factorial is of {MAX_FACTORIAL} at most")
        exponential = function in ("sinh", "cosh", "tanh") or mp.im(number) != 0
        if exponential and abs(number) > MAX_LOG10 * _LN10:
            raise TooLargeError(f"a value has at most {MAX_LOG10:g} digits")


def _compute(mp: Any, function: str, numbers: list[Value]) -> Value:
    first = numbers[0]
    if function in ("min", "max"):
        return min(numbers) if function == "min" else max(numbers)
    if function == "factorial":
        return mp.gamma(first + 1)
    names = {
        **{"ln": "log", "abs": "fabs", "binomial": "binomial", "floor": "floor", "ceil": "ceil"},
        **{f"arc{name}": f"a{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
    }
    if function in ("gcd", "lcm"):
        raise ValueError("of integers only")
    return getattr(mp, names.get(function, function))(*numbers)
