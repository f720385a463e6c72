"""Kind ``countdown``: an expression over given numbers, each used exactly once, equal to a target.

============================ ======================================================================
rule                         decision
============================ ======================================================================
how often a number           exactly as often as it is given: none left over, none twice
operators                    ``+ - * /`` and parentheses; also the typeset times, divided, minus,
                             and LaTeX's ``\\times \\cdot \\div \\left( \\right)``
refused                      ``**`` ``//`` ``%`` ``!``, names, an equals sign, joined digits
numbers                      written as given: no sign, no decimal point, no leading zero
values on the way            exact fractions: ``8/(3-8/3)`` is 24
division by zero             0, wherever it stands
target                       an integer, met exactly
size                         at most 1000 characters, parentheses at most 50 deep
============================ ======================================================================

TinyZero's prompt says that each number may be used once and its checker asks for all; by its
characters it also admits ``2**3``, ``-2`` and ``3.8`` for 3 and 8, and it compares floats.
reasoning-gym's says "at most once" in one of its phrasings and gives 1 only if all are used. The
parser here is its own and bounded: an answer is text from a policy, never code.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from actors.verification.judgement import Judgement
from common.answers import extract_answer
from common.task_reference import CountdownReference, read_reference

MAX_EXPRESSION_CHARS = 1000
MAX_DEPTH = 50

_TOKEN = re.compile(r"\s*(?:(0|[1-9]\d*)(?!\d)|([-+*/()]))", re.ASCII)
_PLAIN_SIGNS = str.maketrans({"\u00d7": "*", "\u00f7": "/", "\u2212": "-"})
_LATEX = re.compile(r"\\(times|cdot|div|left|right)(?![A-Za-z])")
_LATEX_SIGNS = {"times": "*", "cdot": "*", "div": "/"}


class ExpressionError(ValueError):
    """The text is no expression of the permitted form; the message says where."""


def judge_countdown(completion: str, reference_json: str) -> Judgement:
    """1 when the final answer uses every number once and equals ``target``, else 0."""
    reference = read_reference(reference_json, CountdownReference)
    answer = extract_answer(completion)
    if answer is None:
        return Judgement.wrong_format("no final answer in <answer> or \\boxed{}")
    try:
        value, used = evaluate(answer)
    except (ExpressionError, ZeroDivisionError) as error:
        return Judgement.graded(0.0, str(error))
    if Counter(used) != Counter(reference.numbers):
        return Judgement.graded(0.0, "must use each given number exactly once")
    return Judgement.graded(float(value == reference.target))


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """Exact value of ``expression`` and the numbers in it, in order.

    Raises :class:`ExpressionError`, and ``ZeroDivisionError`` for a division by zero.
    """
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise ExpressionError(f"an expression has at most {MAX_EXPRESSION_CHARS} characters")
    plain = _LATEX.sub(lambda sign: _LATEX_SIGNS.get(sign[1], " "), expression)
    parser = _Parser(_tokens(plain.translate(_PLAIN_SIGNS)))
    value = parser.sum(depth=0)
    if parser.next is not None:
        raise ExpressionError(f"unexpected {parser.next!r}")
    return value, parser.used


def _tokens(text: str) -> list[str]:
    tokens, position, text = [], 0, text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"unexpected character {text[position]!r}")
        tokens.append(match[1] or match[2])
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent: sum := product (+- product)*, product := atom (*/ atom)*."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens
        self._position = 0
        self.used: list[int] = []

    @property
    def next(self) -> str | None:
        """The token that comes next, None at the end."""
        return self._tokens[self._position] if self._position < len(self._tokens) else None

    def _take(self) -> str:
        token = self.next
        if token is None:
            raise ExpressionError("unexpected end of expression")
        self._position += 1
        return token

    def sum(self, depth: int) -> Fraction:
        """Read additions and subtractions, from left to right."""
        value = self._product(depth)
        while self.next in ("+", "-"):
            sign = 1 if self._take() == "+" else -1
            value += sign * self._product(depth)
        return value

    def _product(self, depth: int) -> Fraction:
        value = self._atom(depth)
        while self.next in ("*", "/"):
            if self._take() == "*":
                value *= self._atom(depth)
                continue
            divisor = self._atom(depth)
            if divisor == 0:
                raise ZeroDivisionError("division by zero")
            value /= divisor
        return value

    def _atom(self, depth: int) -> Fraction:
        symbol = self._take()
        if symbol == "(":
            if depth == MAX_DEPTH:
                raise ExpressionError(f"parentheses go at most {MAX_DEPTH} deep")
            value = self.sum(depth + 1)
            if self._take() != ")":
                raise ExpressionError("a parenthesis is not closed")
            return value
        if not symbol.isdigit():
            raise ExpressionError(f"unexpected {symbol!r}")
        self.used.append(int(symbol))
        return Fraction(self.used[-1])
