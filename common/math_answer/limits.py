"""How large an answer may be. What is larger is refused before any work is done on it."""

from __future__ import annotations

MAX_ANSWER_BYTES = 4096
MAX_TOKENS = 1500
"""Numbers, letters, commands and signs."""

MAX_DEPTH = 24
"""Brackets, fractions and roots inside each other."""

MAX_DIGITS = 1000
"""Of one number, as written."""

MAX_ITEMS = 100
"""Elements of a list, set or tuple, parts of a union, and entries of a matrix."""

MAX_EXPONENT = 10_000
MAX_FACTORIAL = 1000
"""Largest argument of a factorial or binomial coefficient."""

MAX_LOG10 = 4000.0
"""Decimal digits before the point that a value may have, by a bound that needs no evaluation."""


class AnswerError(ValueError):
    """The text is no answer of the grammar; the message says what and, where it helps, the cure."""


class TooLargeError(AnswerError):
    """A value would have more digits than are computed."""
