"""Kind ``arithmetic``: the final answer is a number and must equal the reference exactly.

Accuracy reward of DeepSeek-R1 (arXiv 2501.12948, section 2.2.2) for integer, decimal and ratio
answers. ``0.5``, ``.50`` and ``1/2`` are equal; nothing is rounded, and a division that leaves an
integer is still to be done.
"""

from __future__ import annotations

from fractions import Fraction

from actors.verification.judgement import Judgement
from common.answers import extract_answer, parse_number
from common.errors import DataError
from common.task_reference import ArithmeticReference, read_reference


def judge_arithmetic(completion: str, reference_json: str) -> Judgement:
    """1 when the final answer (see :func:`common.answers.extract_answer`) equals ``gold``."""
    gold = _gold_value(read_reference(reference_json, ArithmeticReference).gold)
    answer = extract_answer(completion)
    if answer is None:
        return Judgement.wrong_format("no final answer in <answer> or \\boxed{}")
    value = parse_number(answer)
    if value is None:
        return Judgement.graded(0.0, "the final answer is not a number")
    if "/" in answer and value.denominator == 1:
        return Judgement.graded(0.0, "the division is not worked out")
    return Judgement.graded(float(value == gold))


def _gold_value(gold: str | float) -> Fraction:
    """The decimal digits of a JSON number count, not the binary fraction that floats make of it."""
    value = parse_number(str(gold))
    if value is None:
        raise DataError(f"malformed task: gold must be a number, got {str(gold)[:80]!r}")
    return value
