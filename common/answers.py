"""Where the final answer of a completion stands, and when two answers are the same.

One definition for the verifier, which judges the answer, and the collector, which counts votes.
All functions are pure, run in linear time and never evaluate what they read.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_NUMBER_CHARS = 1000
"""Longer texts are not numbers: it bounds the cost of exact arithmetic."""

_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"
_ANSWER_OPEN, _ANSWER_CLOSE = "<answer>", "</answer>"
_BOXED = "\\boxed{"
_DECIMAL = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?", re.ASCII)
_RATIO = re.compile(r"([+-]?\d+)\s*/\s*(\d+)", re.ASCII)


def extract_answer(completion: str) -> str | None:
    """The final answer, stripped: the last ``<answer>`` block, else the last ``\\boxed{}``.

    Only what follows the last ``</think>`` counts: a number that occurs while thinking is no
    answer. None when thinking was opened and never closed, when there is no complete block, or when
    the block is empty.
    """
    _, closed, conclusion = completion.rpartition(_THINK_CLOSE)
    if not closed and _THINK_OPEN in completion:
        return None
    answer = _last_answer_block(conclusion)
    if answer is None:
        answer = _last_boxed(conclusion)
    return answer.strip() or None if answer is not None else None


def parse_number(text: str) -> Fraction | None:
    """The exact value of an integer, decimal or ratio, or None when ``text`` is no number.

    Signs, leading zeros, ``.5``, ``5.``, well-formed thousands commas and U+2212 are read;
    exponents, units and other scripts' digits are not.
    """
    plain = text.strip().replace("\u2212", "-")
    if len(plain) > MAX_NUMBER_CHARS:
        return None
    ratio = _RATIO.fullmatch(plain)
    if ratio:
        divisor = int(ratio[2])
        return Fraction(int(ratio[1]), divisor) if divisor else None
    if not _DECIMAL.fullmatch(plain) or not any(char.isdigit() for char in plain):
        return None
    return Fraction(plain.replace(",", ""))


def canonical_answer(answer: str) -> str:
    """Equal exactly for equal answers: a number's value, otherwise the text with single blanks."""
    number = parse_number(answer)
    return " ".join(answer.split()) if number is None else str(number)


def _last_answer_block(text: str) -> str | None:
    end = text.rfind(_ANSWER_CLOSE)
    start = text.rfind(_ANSWER_OPEN, 0, max(end, 0))
    return text[start + len(_ANSWER_OPEN) : end] if start >= 0 else None


def _last_boxed(text: str) -> str | None:
    """Content of the last ``\\boxed{...}``, braces matched, a backslash escaping the next one."""
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    start += len(_BOXED)
    depth, position = 1, start
    while position < len(text):
        char = text[position]
        if char == "\\":
            position += 1
        elif char in "{}":
            depth += 1 if char == "{" else -1
            if depth == 0:
                return text[start:position]
        position += 1
    return None
