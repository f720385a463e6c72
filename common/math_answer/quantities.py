"""What may stand beside a number: units, percent, colons, a base; and answers in words.

One reader over the cursor of :mod:`common.math_answer.reader`, which knows no brackets.
"""

from __future__ import annotations

from common.math_answer import vocabulary as vocab
from common.math_answer.cursor import Cursor
from common.math_answer.expressions import ExpressionReader
from common.math_answer.limits import AnswerError
from common.math_answer.tree import (
    Answer,
    Based,
    Constant,
    Expression,
    NumberSet,
    Product,
    Quantity,
    Ratio,
    Words,
    product,
)
from common.math_answer.units import unit_name


class QuantityReader:
    """Methods raise :class:`AnswerError`."""

    def __init__(self, cursor: Cursor, expressions: ExpressionReader) -> None:
        self._cursor = cursor
        self._expressions = expressions

    def with_unit(self, value: Expression) -> Answer:
        """``value`` with the unit or the sign that follows it, if one does."""
        if self._cursor.skip("%"):
            return Quantity(value, "percent")
        if self._cursor.next.kind == "text":
            return Quantity(value, self._unit())
        last = value.factors[-1] if isinstance(value, Product) else value
        if last == Constant("degree") and isinstance(value, Product):
            return Quantity(product(*value.factors[:-1]), "degree")
        return value

    def _unit(self) -> str:
        words = []
        while self._cursor.next.kind == "text":
            word = self._cursor.take().value
            if self._cursor.skip("^"):
                word = f"{word}^{self._unit_exponent()}"
            words.append(word)
        return unit_name(" ".join(words))

    def _unit_exponent(self) -> str:
        grouped = self._cursor.skip("{")
        exponent = self._cursor.take().value
        if grouped:
            self._cursor.expect("}")
        if exponent not in ("2", "3"):
            raise AnswerError("the exponent of a unit is 2 or 3")
        return exponent

    def ratio(self, first: Expression) -> Answer:
        """``first`` and what follows colons: a proportion, or a time of day."""
        parts = [first]
        while self._cursor.skip(":"):
            parts.append(self._expressions.sum())
        half = ""
        if self._cursor.next.kind == "text":
            half = self._cursor.take().value.replace(".", "")
            if half not in ("am", "pm"):
                raise AnswerError(f"{half[:20]!r} cannot follow a proportion")
        return Ratio(tuple(parts), half)

    def words(self) -> Answer:
        """Words and numbers up to the next symbol."""
        words = []
        while self._cursor.next.kind in ("text", "number"):
            words.append(self._cursor.take().value)
        return Words(" ".join(" ".join(words).split()))

    def number_set(self) -> Answer:
        """``\\mathbb{R}`` with its index."""
        name = self._cursor.take().value
        if name not in vocab.NUMBER_SETS:
            raise AnswerError(f"\\mathbb{{{name[:5]}}} is no set of numbers")
        suffix = ""
        for script in ("^", "_"):
            if self._cursor.skip(script):
                suffix += script + self._script()
        return NumberSet(name + suffix)

    def _script(self) -> str:
        if not self._cursor.skip("{"):
            return self._cursor.take().value
        value = ""
        while not self._cursor.skip("}"):
            value += self._cursor.take().value
        return value

    def based(self) -> Answer:
        """``204_5``."""
        digits = self._cursor.take().value
        self._cursor.expect("_")
        base = self._script()
        if not (digits.isdigit() and base.isdigit() and len(base) <= 2 and 2 <= int(base) <= 36):
            raise AnswerError("a number in a base is digits_base, with a base from 2 to 36")
        if any(int(digit) >= int(base) for digit in digits):
            raise AnswerError(f"{digits[:20]} has digits that base {base} has not")
        return Based(digits.lstrip("0") or "0", int(base))
