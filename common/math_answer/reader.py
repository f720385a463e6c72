"""Text of a final answer -> tree: lists, sets, intervals, matrices, equations, units, words.

The grammar, from the outside in::

    answer   := item ((, | ; | and | or) item)*
    item     := side ((= | < | > | <= | >= | != | ~ | in) side)*
    side     := words | value [unit | %] | value (: value)+ | digits_base | set (cup side)*
    set      := ( items ) | [ items ) | { items } | R | emptyset | matrix

Every token is read once and brackets are matched beforehand, so time is linear in the length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from common.math_answer import vocabulary as vocab
from common.math_answer.cursor import Cursor
from common.math_answer.expressions import ExpressionReader
from common.math_answer.lexer import Token, tokenize
from common.math_answer.limits import MAX_DEPTH, MAX_ITEMS, AnswerError
from common.math_answer.magnitude import check_magnitude
from common.math_answer.plain_numbers import read_plain
from common.math_answer.quantities import QuantityReader
from common.math_answer.tree import (
    EXPRESSIONS,
    MINUS_ONE,
    Answer,
    Brackets,
    Combination,
    Expression,
    Listing,
    Matrix,
    Number,
    Quantity,
    Relation,
    Symbol,
    product,
)
from common.math_answer.units import in_currency

_DOLLAR_SIGN = re.compile(r"\\\$|^[^$]*\$[^$]*$")
"""An escaped one, or one by itself: two are the ends of a formula."""

_RELATIONS = ("=", "<", ">", "<=", ">=", "!=", "~", "in")
_SEPARATORS = (",", ";", "and", "or")
_CONNECTIVES = ("and", "or")
_SET_OPERATIONS = ("union", "intersection", "minus")
_BOXED = "\\boxed{"
_CLOSER_OF = {"(": (")", "]"), "[": (")", "]"), "{set": ("set}",), "<(": (")>",), "{": ("}",)}
_OPENING, _CLOSING = frozenset(_CLOSER_OF), frozenset((")", "]", "set}", ")>", "}"))


def read_answer(text: str) -> Answer:
    """The tree of ``text``; raises :class:`AnswerError` when it is no answer of the grammar."""
    if plain := read_plain(text):
        return plain
    tokens = tokenize(_unboxed(text))
    if len(tokens) > 1 and tokens[-2].kind == "symbol" and tokens[-2].value in (".", ","):
        del tokens[-2]
    if len(tokens) == 1:
        raise AnswerError("the answer is empty")
    reader = _Reader(tokens)
    answer = reader.items()
    if reader.cursor.next.kind != "end":
        raise AnswerError(f"unexpected {reader.cursor.next.value[:20]!r}")
    check_magnitude(answer)
    return _with_currencies(answer, text)


def _with_currencies(answer: Answer, text: str) -> Answer:
    """An amount with its currency; in lists and equations the sign says nothing.

    Raises :class:`AnswerError` for an amount of two currencies.
    """
    for sign, currency in vocab.CURRENCIES.items():
        if not (_DOLLAR_SIGN.search(text) if sign == "$" else sign in text):
            continue
        if isinstance(answer, EXPRESSIONS):
            answer = Quantity(answer, currency)
        elif isinstance(answer, Quantity):
            answer = Quantity(answer.value, in_currency(currency, answer.unit))
    return answer


def _unboxed(text: str) -> str:
    """The content of boxes around the whole text; a box elsewhere is refused by the lexer."""
    for _ in range(MAX_DEPTH):
        inner = text.strip("$ \n")
        if not (inner.startswith(_BOXED) and inner.endswith("}")):
            break
        text = inner[len(_BOXED) : -1]
    return text


class _Reader:
    def __init__(self, tokens: Sequence[Token]) -> None:
        self.cursor = Cursor(tokens)
        self._expressions = ExpressionReader(self.cursor, self)
        self._quantities = QuantityReader(self.cursor, self._expressions)
        self._holds_list = _openers_of_lists(tokens)

    def items(self, closers: Sequence[str] = ()) -> Answer:
        """One item, or a listing of several."""
        items, joined = self._item_list(closers)
        if len(items) == 1:
            return items[0]
        return _with_common_name(items) or Listing(tuple(items), joined=joined)

    def _item_list(self, closers: Sequence[str]) -> tuple[list[Answer], str]:
        """The items and the last word between them."""
        items, joined = [self._item()], ""
        while self.cursor.at(*_SEPARATORS):
            separator = self.cursor.take().value
            if separator not in _CONNECTIVES and self.cursor.at(*_CONNECTIVES):
                separator = self.cursor.take().value
            joined = separator if separator in _CONNECTIVES else joined
            items.append(self._item())
            if len(items) > MAX_ITEMS:
                raise AnswerError(f"an answer has at most {MAX_ITEMS} items")
        if closers and not self.cursor.at(*closers):
            raise AnswerError(f"expected a closing bracket before {self.cursor.next.value[:20]!r}")
        return items, joined

    def _item(self) -> Answer:
        members, relations = [self._side()], []
        while self.cursor.at(*_RELATIONS):
            relations.append(self.cursor.take().value)
            members.append(self._side())
        if not relations:
            return members[0]
        return Relation(tuple(members), tuple(relations))

    def _side(self) -> Answer:
        parts = [self._operand()]
        operation = ""
        while self.cursor.at(*_SET_OPERATIONS):
            following = self.cursor.take().value
            if operation and following != operation:
                raise AnswerError("different set operations must be in parentheses")
            operation = following
            parts.append(self._operand())
        return Combination(operation, tuple(parts)) if operation else parts[0]

    def _operand(self) -> Answer:
        token = self.cursor.next
        if token.kind == "text":
            return self._quantities.words()
        if token.kind == "set":
            return self._quantities.number_set()
        if token.kind == "emptyset":
            self.cursor.take()
            return Listing((), braced=True)
        if token.kind == "number" and self.cursor.look_ahead(1).value == "_":
            return self._quantities.based()
        if self._at_structure():
            return self.bracketed()
        return self._value()

    def _at_structure(self) -> bool:
        token = self.cursor.next
        if token.kind == "begin":
            return True
        return token.kind == "symbol" and self.cursor.position in self._holds_list

    def bracketed(self) -> Answer:
        """Whatever an opening bracket or ``\\begin`` starts."""
        with self.cursor.nested():
            opener = self.cursor.take()
            if opener.kind == "begin":
                return self._matrix(opener.value)
            closers = _CLOSER_OF.get(opener.value)
            if closers is None:
                raise AnswerError(f"unexpected {opener.value[:20]!r}")
            return self._between(opener.value, closers)

    def _between(self, opener: str, closers: Sequence[str]) -> Answer:
        braced = opener in ("{set", "{")
        if braced and self.cursor.skip(*closers):
            return Listing((), braced=True)
        items, _ = self._item_list(closers)
        closer = self.cursor.take().value
        if braced:
            if len(items) == 1 and opener == "{":
                return items[0]
            return Listing(tuple(items), braced=True, invisible=opener == "{")
        if len(items) == 1 and opener != "<(":
            if not isinstance(items[0], (*EXPRESSIONS, Matrix)):
                raise AnswerError("parentheses must hold an expression or several items")
            return items[0]
        return Brackets(opener, tuple(items), closer)

    def _value(self) -> Answer:
        negative = self.cursor.at("-") and self.cursor.look_ahead(1).kind == "begin"
        if negative:
            self.cursor.take()
            return _scaled(MINUS_ONE, self._matrix_operand())
        value = self._expressions.sum()
        if self.cursor.next.kind == "begin":
            return _scaled(value, self._matrix_operand())
        if self.cursor.at(":"):
            return self._quantities.ratio(value)
        return self._quantities.with_unit(value)

    def _matrix_operand(self) -> Matrix:
        matrix = self.bracketed()
        if not isinstance(matrix, Matrix):
            raise AnswerError("a matrix must follow")
        return matrix

    def _matrix(self, environment: str) -> Answer:
        rows: list[list[Expression]] = [[]]
        while not self._skip_end(environment):
            rows[-1].append(self._expressions.sum())
            if sum(map(len, rows)) > MAX_ITEMS:
                raise AnswerError(f"a matrix has at most {MAX_ITEMS} entries")
            if self.cursor.skip("row"):
                rows.append([])
            elif not self.cursor.skip("&") and self.cursor.next.kind != "close":
                raise AnswerError("the entries of a matrix must have & between them")
        rows = [row for row in rows if row]
        if not rows or len({len(row) for row in rows}) != 1:
            raise AnswerError("the rows of a matrix have the same length")
        return Matrix(tuple(map(tuple, rows)))

    def _skip_end(self, environment: str) -> bool:
        token = self.cursor.next
        if token.kind != "close" or token.value != environment:
            return False
        self.cursor.take()
        return True


def _scaled(factor: Expression, matrix: Matrix) -> Matrix:
    return Matrix(tuple(tuple(_multiple(factor, entry) for entry in row) for row in matrix.rows))


def _multiple(factor: Expression, entry: Expression) -> Expression:
    if isinstance(factor, Number) and isinstance(entry, Number) and not entry.decimals:
        return Number(factor.value * entry.value, factor.decimals)
    return product(factor, entry)


def _with_common_name(items: Sequence[Answer]) -> Relation | None:
    """``n = 1, 2, 3``: the name belongs to the whole list."""
    first, *rest = items
    if not isinstance(first, Relation) or first.relations != ("=",):
        return None
    name, value = first.members
    if not isinstance(name, Symbol) or any(isinstance(item, Relation) for item in rest):
        return None
    return Relation((name, Listing((value, *rest))), ("=",))


def _openers_of_lists(tokens: Sequence[Token]) -> set[int]:
    """Positions of opening brackets that hold a list, set, tuple, interval or a matrix."""
    found: set[int] = set()
    open_at: list[int] = []
    for position, token in enumerate(tokens):
        if token.kind == "begin" and open_at and open_at[-1] == position - 1:
            found.add(open_at[-1])
        if token.kind != "symbol":
            continue
        if token.value in _OPENING:
            open_at.append(position)
            if token.value in ("{set", "<("):
                found.add(position)
        elif token.value in _CLOSING and open_at:
            open_at.pop()
        elif token.value in _SEPARATORS and open_at:
            found.add(open_at[-1])
    return found
