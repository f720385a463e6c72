"""The name of a unit of measurement, or of what is counted."""

from __future__ import annotations

import re

from common.math_answer.limits import AnswerError
from common.math_answer.vocabulary import MEANINGFUL_WORDS, NO_AMOUNT_OF, UNITS

_WORD = re.compile(r"([^\W\d_]+)(?:\^?([23]))?")
_MAX_WORDS = 4


def unit_name(words: str) -> str:
    """Canonical form: ``cm^2``, ``sq cm`` and ``square centimeters`` are one unit.

    Raises :class:`AnswerError` for words that say more than what is counted, such as "million" or
    "or more": with them the number in front is not the answer.
    """
    parts = words.replace("/", " per ").replace("-", " ").replace(".", " ").split()
    if not 1 <= len(parts) <= _MAX_WORDS:
        raise AnswerError(f"a unit has 1 to {_MAX_WORDS} words")
    names: list[str] = []
    power = ""
    for part in parts:
        match = _WORD.fullmatch(part)
        if match is None or match[1] in MEANINGFUL_WORDS:
            raise AnswerError(f"{part[:20]!r} is no unit")
        name = _singular(match[1])
        if name in ("square", "cubic"):
            power = "^2" if name == "square" else "^3"
            continue
        names.append(name + (f"^{match[2]}" if match[2] else power))
        power = ""
    if power or not names:
        raise AnswerError(f"{words[:20]!r} is no unit")
    return " ".join(names)


def in_currency(currency: str, unit: str) -> str:
    """The unit of an amount with the sign of ``currency`` in front and ``unit`` behind it.

    Raises :class:`AnswerError` for another currency, a percentage or an angle.
    """
    first = unit.partition(" ")[0]
    if first == currency:
        return unit
    if first in NO_AMOUNT_OF:
        raise AnswerError(f"an amount of {currency}s is none of {first!r}")
    return f"{currency} {unit}" if first == "per" else currency


def _singular(word: str) -> str:
    known = UNITS.get(word) or UNITS.get(word.removesuffix("s"))
    return known or (word.removesuffix("s") if len(word) > 3 else word)
