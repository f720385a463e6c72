"""Where the final answer of a completion stands, and when two answers count as one vote.

One definition for the verifier, which judges the answer, and the collector, which counts votes.
All functions are pure, run in linear time and never evaluate what they read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from common.answer_conventions import MARKED, Convention
from common.math_answer.limits import AnswerError
from common.math_answer.rational import rational_value
from common.math_answer.reader import read_answer
from common.math_answer.tree import EXPRESSIONS, Quantity
from common.math_answer.vocabulary import CURRENCIES
from common.thoughts import THINK_CLOSE, THINK_OPEN

MAX_NUMBER_CHARS = 1000
"""Longer texts are not numbers: it bounds the cost of exact arithmetic."""

MAX_CONCLUSION_CHARS = 1 << 16
"""An answer is looked for in so many characters at the end of a completion."""

_ANSWER_OPEN, _ANSWER_CLOSE = "<answer>", "</answer>"
_BOX_MARKS = re.compile(r"(\\boxed\s*\{)|\\.|[{}]", re.DOTALL)
_MAX_JOINER_CHARS = 80
_JOINER = re.compile(r"(?:[\s,;.$~]|\\[,;:! ()\[\]]|\\q?quad|\\text\{\s*(?:and|or)\s*\}|and|or)*")
_FINAL_ANSWER = re.compile(r"final\s+answer\s+is[ *]{0,4}:?", re.IGNORECASE)
_BOLD = re.compile(r"\*\*(?![\s*])((?:[^*]|\*(?!\*))+)(?<![\s*])\*\*")
_ALTERNATIVE = re.compile(r"\s*,?\s*(?:or|not)\s+", re.IGNORECASE)
_DELIMITERS = {"$$": "$$", "$": "$", "\\(": "\\)", "\\[": "\\]"}
_OPENER = re.compile("(" + "|".join(map(re.escape, _DELIMITERS)) + ")")
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)")
_DECIMAL = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?", re.ASCII)
_RATIO = re.compile(r"([+-]?\d+)\s*/\s*(\d+)", re.ASCII)
_LAST_NUMBER = re.compile(
    r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?", re.ASCII
)


def extract_answer(completion: str, conventions: Sequence[Convention] = MARKED) -> str | None:
    """The final answer, stripped, by the first of ``conventions`` that finds one.

    Only what follows the last ``</think>`` counts: a number that occurs while thinking is no
    answer. Boxes with nothing but "and" and punctuation between them are one list. An answer block
    that holds a box or a phrase is read for that. None when thinking was opened and not closed,
    also if it was once before, when there is no complete answer, or when it is empty.
    """
    conclusion = completion.rpartition(THINK_CLOSE)[2]
    if THINK_OPEN in conclusion:
        return None
    return _find(conclusion[-MAX_CONCLUSION_CHARS:], conventions)


def _find(text: str, conventions: Sequence[Convention]) -> str | None:
    for convention in conventions:
        answer = _FINDERS[convention](text)
        if answer is None:
            continue
        if convention == "answer-tag":
            others = [other for other in conventions if other != convention]
            answer = _without_emphasis(_find(answer, others) or answer)
        return answer.strip() or None
    return None


def _without_emphasis(answer: str) -> str:
    """``**2**`` in an answer block is a bold 2."""
    bold = _BOLD.fullmatch(answer.strip())
    return bold[1] if bold else answer


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
    """What answers vote by: the exact value where there is one, else the text with single blanks.

    ``1/2``, ``.5`` and ``\\frac{1}{2}`` are one vote.
    """
    number = parse_number(answer)
    if number is None:
        number = _exact_value(answer)
    return " ".join(answer.split()) if number is None else str(number)


def _exact_value(answer: str) -> Fraction | None:
    try:
        tree = read_answer(answer)
        if isinstance(tree, Quantity) and tree.unit in CURRENCIES.values():
            tree = tree.value
        return rational_value(tree) if isinstance(tree, EXPRESSIONS) else None
    except AnswerError:
        return None


def _last_answer_block(text: str) -> str | None:
    end = text.rfind(_ANSWER_CLOSE)
    start = text.rfind(_ANSWER_OPEN, 0, max(end, 0))
    return text[start + len(_ANSWER_OPEN) : end] if start >= 0 else None


def _last_boxes(text: str) -> str | None:
    """Content of the last outermost ``\\boxed{...}``, with the boxes that it is joined to."""
    boxes = _outermost_boxes(text)
    if not boxes:
        return None
    first = len(boxes) - 1
    while first and _joins(text, boxes[first - 1][1], boxes[first][0]):
        first -= 1
    contents = [text[text.index("{", start) + 1 : end - 1] for start, end in boxes[first:]]
    distinct = list(dict.fromkeys(content.strip() for content in contents))
    return distinct[0] if len(distinct) == 1 else ", ".join(distinct)


def _joins(text: str, start: int, end: int) -> bool:
    return end - start <= _MAX_JOINER_CHARS and bool(_JOINER.fullmatch(text, start, end))


def _outermost_boxes(text: str) -> list[tuple[int, int]]:
    """(start, end) of each complete box that is in no other, braces matched, in one pass.

    A backslash escapes the character after it.
    """
    boxes: list[tuple[int, int]] = []
    open_braces: list[int | None] = []
    for mark in _BOX_MARKS.finditer(text):
        if mark[1] or mark[0] == "{":
            open_braces.append(mark.start() if mark[1] else None)
        elif mark[0] == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                while boxes and boxes[-1][0] > start:
                    boxes.pop()
                boxes.append((start, mark.end()))
    return boxes


def _after_final_answer(text: str) -> str | None:
    """What follows the last "final answer is", to the end of the formula or of the sentence."""
    ends = [match.end() for match in _FINAL_ANSWER.finditer(text)]
    if not ends:
        return None
    rest = text[ends[-1] :].lstrip(" \t*")
    formulas = _formulas_at_start(rest)
    if formulas:
        return ", ".join(formulas)
    end_of_sentence = _SENTENCE_END.search(rest)
    sentence = rest[: end_of_sentence.start()] if end_of_sentence else rest
    return sentence.rstrip(" \t*.")


def _formulas_at_start(text: str) -> list[str]:
    """Contents of the formula that ``text`` begins with, and of those that "or" joins to it.

    Nothing but an empty one where one never ends.
    """
    found: list[str] = []
    place = 0
    while (opened := _OPENER.match(text, place)) is not None:
        closer = _DELIMITERS[opened[1]]
        end = text.find(closer, opened.end())
        if end < 0:
            return [""]
        found.append(text[opened.end() : end])
        joined = _ALTERNATIVE.match(text, end + len(closer))
        if joined is None:
            break
        place = joined.end()
    return found


def _last_number(text: str) -> str | None:
    """The last integer, decimal or ratio; digits inside of a word are none."""
    found = _LAST_NUMBER.findall(text)
    return found[-1] if found else None


_FINDERS = {
    "answer-tag": _last_answer_block,
    "boxed": _last_boxes,
    "final-answer": _after_final_answer,
    "last-number": _last_number,
}
