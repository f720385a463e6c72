"""From a completion to a judgement: extract, read, compare; remember pairs that were compared."""

from __future__ import annotations

from functools import lru_cache

from actors.verification.judgement import Judgement
from actors.verification.math.cpu_limit import CpuLimitError, cpu_limit
from actors.verification.math.equality import same_answer
from actors.verification.math.worked import is_worked_out
from common.answers import extract_answer
from common.errors import DataError
from common.math_answer.limits import AnswerError
from common.math_answer.reader import read_answer
from common.math_answer.tree import Answer
from common.references.math import MathReference, read_gold
from common.task_reference import read_reference

CPU_LIMIT_S = 1.0
"""Processor seconds for one answer."""

CACHE_SIZE = 4096


def judge_math(completion: str, reference_json: str) -> Judgement:
    """1 when the final answer equals ``gold``; raises :class:`DataError` for a malformed gold.

    The answer stands where ``extract`` of the task says (see :func:`common.answers.find_answer`).
    """
    reference = _read_task(reference_json)
    answer = extract_answer(completion, reference.extract)
    if answer is None:
        return Judgement.wrong_format("no final answer where the task wants it")
    return compare(answer, reference.gold_text)


@lru_cache(CACHE_SIZE)
def compare(answer: str, gold: str) -> Judgement:
    """The judgement of an answer's text against the gold answer's; kept for pairs seen again."""
    try:
        expected = read_gold(gold)
    except AnswerError as error:
        raise DataError(f"malformed task: gold {gold[:80]!r}: {error}") from None
    if answer == gold:
        return Judgement.graded(1.0)
    try:
        with cpu_limit(CPU_LIMIT_S):
            return _judged(read_answer(answer), expected)
    except AnswerError as error:
        return Judgement.graded(0.0, str(error))
    except CpuLimitError:
        return Judgement.limit_exceeded(f"processor limit of {CPU_LIMIT_S:g} s exceeded")


def _judged(answer: Answer, gold: Answer) -> Judgement:
    if not same_answer(answer, gold):
        return Judgement.graded(0.0)
    if not is_worked_out(answer, gold):
        return Judgement.graded(0.0, "the arithmetic of the answer is not worked out")
    return Judgement.graded(1.0)


@lru_cache(CACHE_SIZE)
def _read_task(reference_json: str) -> MathReference:
    return read_reference(reference_json, MathReference)
