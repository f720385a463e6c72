"""Integers, decimals and fractions, which most answers are: a way of its own, and a short one.

It says the same as the grammar of :mod:`common.math_answer.reader`.
"""

from __future__ import annotations

import re
from fractions import Fraction

from common.math_answer.tree import Expression, Number, quotient

_PLAIN_NUMBER = re.compile(r"(-?\d{1,30})(?:\.(\d{1,30}))?", re.ASCII)
_PLAIN_FRACTION = re.compile(
    r"(?:\\[dt]?frac\{(\d{1,30})\}\{(\d{1,30})\}|(\d{1,30})/(\d{1,30}))", re.ASCII
)


def read_plain(text: str) -> Expression | None:
    """The number that ``text`` is and nothing else; None where the grammar must be asked."""
    if number := _PLAIN_NUMBER.fullmatch(text):
        whole, decimals = number.groups()
        if not decimals:
            return Number(Fraction(int(whole)))
        return Number(Fraction(int(whole + decimals), 10 ** len(decimals)), len(decimals))
    if fraction := _PLAIN_FRACTION.fullmatch(text):
        upper, lower = fraction[1] or fraction[3], fraction[2] or fraction[4]
        return quotient(Number(Fraction(int(upper))), Number(Fraction(int(lower))))
    return None
