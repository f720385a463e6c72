"""Reading tokens one after the other, never deeper than the limit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from common.math_answer.lexer import Token
from common.math_answer.limits import MAX_DEPTH, AnswerError


class Cursor:
    """A position in a list of tokens that ends with an ``end`` token."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = list(tokens)
        self.position = 0
        self._depth = 0

    @property
    def next(self) -> Token:
        """The token that comes next."""
        return self._tokens[self.position]

    def look_ahead(self, distance: int) -> Token:
        """The token ``distance`` after the next one, the end token beyond the end."""
        return self._tokens[min(self.position + distance, len(self._tokens) - 1)]

    def at(self, *symbols: str) -> bool:
        """Whether the next token is one of these symbols."""
        return self.next.kind == "symbol" and self.next.value in symbols

    def take(self) -> Token:
        """Consume the next token."""
        token = self.next
        if token.kind == "end":
            raise AnswerError("the answer ends too early")
        self.position += 1
        return token

    def skip(self, *symbols: str) -> bool:
        """Consume the next token if it is one of these symbols."""
        if self.at(*symbols):
            self.position += 1
            return True
        return False

    def expect(self, symbol: str) -> None:
        """Consume ``symbol``; raises :class:`AnswerError` when something else comes."""
        if not self.skip(symbol):
            raise AnswerError(f"expected {symbol!r} before {self.next.value[:20]!r}")

    def split_number(self, num_digits: int) -> str:
        """The first digits of the number that comes next; the rest of it stays."""
        token = self.next
        digits, rest = token.value[:num_digits], token.value[num_digits:]
        if rest:
            self._tokens[self.position] = Token("number", rest, False, token.exponent)
        else:
            self.position += 1
        return digits

    @contextlib.contextmanager
    def nested(self) -> Iterator[None]:
        """Count one level of nesting; raises :class:`AnswerError` beyond the limit."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise AnswerError(f"an answer is at most {MAX_DEPTH} levels deep")
        yield
        self._depth -= 1
