"""A number in an answer's text: thousands separators, decimals, an exponent of ten."""

from __future__ import annotations

import re
from dataclasses import dataclass

from common.math_answer.limits import MAX_DIGITS, AnswerError

THOUSANDS_MARK = "\x1f"
"""Stands for the separators that are one everywhere, such as ``{,}``."""

_GROUPED = {
    "marked": re.compile(r"\d{1,3}(?:\x1f\d{3})+(?!\d)"),
    "comma": re.compile(r"\d{1,3}(?:,\d{3})+(?![\d\x1f])(?!,\d)"),
    "blank": re.compile(r"\d{1,3}(?: \d{3})+(?!\d)(?! \d)(?! ?/)"),
}
_DIGITS = re.compile(r"\d+")
_FRACTION = re.compile(r"\.\d+")
_EXPONENT = re.compile(r"[eE][+-]?\d+(?![\w.])")


@dataclass(frozen=True, slots=True)
class Numeral:
    """``digits`` without separators, the power of ten of ``1e5``, and where the text goes on."""

    digits: str
    exponent: int
    end: int


def starts_numeral(text: str, position: int) -> bool:
    """Whether a digit, or a point with one behind it, stands at ``position``."""
    char = text[position]
    return (char.isascii() and char.isdigit()) or bool(_FRACTION.match(text, position))


def read_numeral(text: str, position: int, *, in_brackets: bool) -> Numeral:
    """The number at ``position``; a comma in brackets separates items.

    Raises :class:`AnswerError` for one of too many digits.
    """
    whole, position = _whole(text, position, in_brackets=in_brackets)
    decimals = ""
    if fraction := _FRACTION.match(text, position):
        position, decimals = fraction.end(), fraction[0]
    if len(whole) + len(decimals) > MAX_DIGITS:
        raise AnswerError(f"a number has at most {MAX_DIGITS} digits")
    if not fraction and whole and text.startswith(".\\overline", position):
        position, decimals = position + 1, "."
    exponent, power = _EXPONENT.match(text, position), 0
    if exponent and len(exponent[0]) <= 5:
        position, power = exponent.end(), int(exponent[0][1:])
    return Numeral((whole or "0") + decimals, power, position)


def _whole(text: str, position: int, *, in_brackets: bool) -> tuple[str, int]:
    """Digits in front of the point, and the place behind them."""
    for separator in ("marked", "blank") if in_brackets else ("marked", "comma", "blank"):
        if grouped := _GROUPED[separator].match(text, position):
            return re.sub(r"\D", "", grouped[0]), grouped.end()
    digits = _DIGITS.match(text, position)
    return (digits[0], digits.end()) if digits else ("", position)
