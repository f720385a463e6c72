"""Sums, products, powers, functions: tokens -> expression.

Blanks between factors multiply, ``2\\frac{1}{2}`` and ``2 1/2`` are mixed numbers, ``1/2x`` is
(1/2)x, ``2^10`` is 1024 and ``\\frac12`` one half. A number stands before what it multiplies:
``x5`` and ``2 3`` are refused.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol

from common.math_answer import vocabulary as vocab
from common.math_answer.building import function_of, is_factorial, plus_term
from common.math_answer.cursor import Cursor
from common.math_answer.lexer import Token
from common.math_answer.limits import AnswerError
from common.math_answer.numbers import read_number
from common.math_answer.tree import (
    EXPRESSIONS,
    MINUS_ONE,
    Answer,
    Apply,
    Call,
    Constant,
    Expression,
    Number,
    PlusMinus,
    Power,
    Symbol,
    negated,
    product,
    quotient,
    total,
)

_SIGNS = ("+", "-", "pm", "mp")
_OPENERS = ("(", "[", "{")
_NAMED_FUNCTIONS = frozenset("fghFGHP")
_PRIMARY_SYMBOLS = frozenset(("(", "[", "{", "floor(", "ceil("))
_PRIMARY_KINDS = frozenset(("number", "name", "constant", "function", "command"))
_DEGREE = Constant("degree")


class BracketReader(Protocol):
    """What this grammar needs of the one around it: whatever an opening bracket starts."""

    def bracketed(self) -> Answer:
        """Read from an opening bracket to its end."""
        ...


class ExpressionReader:
    """Recursive descent over a cursor; methods raise :class:`AnswerError`."""

    def __init__(self, cursor: Cursor, brackets: BracketReader) -> None:
        self._cursor = cursor
        self._brackets = brackets
        self._open_bars = 0

    def sum(self) -> Expression:
        """Terms with signs between them, from left to right."""
        result = self._signed_first()
        while self._cursor.at(*_SIGNS):
            sign = self._cursor.take().value
            term = self._product()
            if sign in ("pm", "mp"):
                if isinstance(result, PlusMinus):
                    raise AnswerError("a sum has one sign \\pm at most")
                result = PlusMinus(result, term, 1 if sign == "pm" else -1)
            elif isinstance(result, PlusMinus):
                result = plus_term(result, term if sign == "+" else negated(term))
            else:
                result = total(result, term if sign == "+" else negated(term))
        return result

    def _signed_first(self) -> Expression:
        if not self._cursor.at(*_SIGNS):
            return self._product()
        sign = self._cursor.take().value
        term = self._product()
        if sign in ("pm", "mp"):
            return PlusMinus(Number(Fraction(0)), term, 1 if sign == "pm" else -1)
        return term if sign == "+" else negated(term)

    def _product(self) -> Expression:
        factors = [self._factor()]
        while True:
            if self._cursor.skip("*"):
                factors.append(self._signed_factor())
            elif self._cursor.skip("/"):
                factors.append(Power(self._signed_factor(), MINUS_ONE))
            elif self._starts_factor():
                self._check_adjacent(factors[-1])
                factors.append(self._factor())
            else:
                return product(*factors)

    def _check_adjacent(self, before: Expression) -> None:
        token = self._cursor.next
        closed = isinstance(before, Power) or is_factorial(before)
        if token.kind == "number" and not closed:
            raise AnswerError(f"{token.value[:20]!r} follows a factor without a sign between them")
        if isinstance(before, Number) and before.decimals is None and token.value == "frac":
            raise AnswerError("a fraction after a number must be proper, or have a sign before it")

    def _signed_factor(self) -> Expression:
        if self._cursor.skip("-"):
            return negated(self._factor())
        self._cursor.skip("+")
        return self._factor()

    def _starts_factor(self) -> bool:
        token = self._cursor.next
        if token.kind == "symbol":
            opens_bar = token.value == "|" and not self._open_bars
            return token.value in _PRIMARY_SYMBOLS or opens_bar
        return token.kind in _PRIMARY_KINDS

    def _factor(self) -> Expression:
        base = self._postfixed(self._primary())
        if not self._cursor.skip("^"):
            return base
        if self._skip_degree_group():
            return product(base, _DEGREE)
        return self._postfixed(Power(base, self._exponent()))

    def _skip_degree_group(self) -> bool:
        """``^\\circ`` and ``^{\\circ}``; the degree sign at an item's end is read as its unit."""
        if self._cursor.at("{") and self._cursor.look_ahead(1).value == "degree":
            self._cursor.take()
            self._cursor.take()
            self._cursor.expect("}")
            return True
        return self._cursor.skip("degree")

    def _exponent(self) -> Expression:
        with self._cursor.nested():
            if self._cursor.skip("-"):
                return negated(self._exponent())
            exponent = self._primary()
            if self._cursor.skip("^"):
                return Power(exponent, self._exponent())
            return exponent

    def _postfixed(self, base: Expression) -> Expression:
        while self._cursor.at("!", "degree"):
            if self._cursor.take().value == "degree":
                base = product(base, _DEGREE)
            elif is_factorial(base):
                raise AnswerError("a factorial of a factorial must be in parentheses")
            else:
                base = Call("factorial", (base,))
        return base

    def _primary(self) -> Expression:
        token = self._cursor.next
        if token.kind == "number":
            return read_number(self._cursor)
        if token.kind in ("name", "constant"):
            self._cursor.take()
            return self._symbol(token)
        with self._cursor.nested():
            if token.kind == "function":
                return self._call()
            if token.kind == "command":
                return self._command()
            if token.kind == "symbol":
                return self._bracketed()
        raise AnswerError(f"unexpected {token.value[:20] or 'end of the answer'!r}")

    def _symbol(self, token: Token) -> Expression:
        name = token.value
        if self._cursor.skip("_"):
            name = f"{name}_{self._subscript()}"
            return Symbol(name)
        if token.kind == "constant":
            return Constant(name)
        if name in _NAMED_FUNCTIONS and self._cursor.at("(") and not self._cursor.next.spaced:
            with self._cursor.nested():
                return Apply(name, self._arguments())
        return Symbol(name)

    def _subscript(self) -> str:
        if not self._cursor.skip("{"):
            return self._cursor.take().value
        parts = []
        while not self._cursor.skip("}"):
            parts.append(self._cursor.take().value)
            if len(parts) > 10:
                raise AnswerError("a subscript has at most 10 symbols")
        return "".join(parts)

    def _arguments(self) -> tuple[Expression, ...]:
        """One or more expressions in parentheses."""
        self._cursor.expect("(")
        arguments = [self.sum()]
        while self._cursor.skip(","):
            arguments.append(self.sum())
        self._cursor.expect(")")
        return tuple(arguments)

    def _call(self) -> Expression:
        name = self._cursor.take().value
        base: Expression | None = None
        if name in ("log", "lg") and self._cursor.skip("_"):
            base = self._primary()
        exponent = self._exponent() if self._cursor.skip("^") else None
        if exponent is None and name == "log" and self._cursor.skip("_"):
            base = self._primary()
        if exponent == MINUS_ONE and name in vocab.INVERSE:
            name, exponent = vocab.INVERSE[name], None
        if name in vocab.MULTIPLE_ARGUMENTS:
            return Call(name, self._arguments())
        call = function_of(name, self._argument(), base)
        return call if exponent is None else Power(call, exponent)

    def _argument(self) -> Expression:
        """``\\sin(x)y`` is (sin x)y; without parentheses factors belong to it up to a function."""
        if self._cursor.at(*_OPENERS):
            return self._postfix_of_argument(self._bracketed())
        if self._cursor.skip("-"):
            with self._cursor.nested():
                return negated(self._argument())
        factors = [self._factor()]
        while self._starts_factor() and self._cursor.next.kind in ("name", "constant", "command"):
            factors.append(self._factor())
        return product(*factors)

    def _postfix_of_argument(self, argument: Expression) -> Expression:
        """``\\sin{30}^\\circ`` is the sine of 30 degrees."""
        ahead = self._cursor.look_ahead(1)
        follows = self._cursor.at("^") and (ahead.value == "degree")
        if follows:
            self._cursor.take()
        return self._postfixed(argument) if follows or self._cursor.at("degree") else argument

    def _command(self) -> Expression:
        name = self._cursor.take().value
        if name == "sqrt":
            return self._root()
        upper, lower = self._fraction_part(), self._fraction_part()
        return quotient(upper, lower) if name == "frac" else Call("binomial", (upper, lower))

    def _root(self) -> Expression:
        degree: Expression = Number(Fraction(2))
        if self._cursor.skip("["):
            degree = self.sum()
            self._cursor.expect("]")
        radicand = self._bracketed() if self._cursor.at(*_OPENERS) else self._primary()
        return Call("root", (radicand, degree))

    def _fraction_part(self) -> Expression:
        if self._cursor.at("{"):
            return self._bracketed()
        if self._cursor.next.kind != "number":
            return self._primary()
        if len(self._cursor.next.value) > 2 or not self._cursor.next.value.isdigit():
            raise AnswerError("the parts of a fraction must stand in braces")
        return Number(Fraction(int(self._cursor.split_number(1))))

    def _bracketed(self) -> Expression:
        if self._cursor.at("|"):
            return self._absolute_value()
        if self._cursor.at("floor(", "ceil("):
            return self._rounded()
        inner = self._brackets.bracketed()
        if not isinstance(inner, EXPRESSIONS):
            raise AnswerError("a list, set or interval is no part of an expression")
        return inner

    def _absolute_value(self) -> Expression:
        self._cursor.expect("|")
        self._open_bars += 1
        inner = self.sum()
        self._open_bars -= 1
        self._cursor.expect("|")
        return Call("abs", (inner,))

    def _rounded(self) -> Expression:
        kind = self._cursor.take().value.removesuffix("(")
        inner = self.sum()
        self._cursor.expect(f"){kind}")
        return Call(kind, (inner,))
