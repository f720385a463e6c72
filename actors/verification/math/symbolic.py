"""Kind ``math-symbolic``: a gold answer that has to be worked out, by math-verify and sympy.

For gold answers that the grammar refuses, such as ``\\sum_{k=1}^n k``. An answer must be one
expression, or one matrix, of the grammar or of that form: an equation, a percentage or a list is
not equal to anything here. "Equal" needs two witnesses: thirty digits at points where both have a
value, and sympy's own difference or math-verify's ``verify``.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import msgspec

from actors.verification.judgement import Check, Judgement
from actors.verification.math.cpu_limit import CpuLimitError, cpu_limit
from common.answers import extract_answer
from common.errors import DataError
from common.math_answer import tree
from common.math_answer.limits import AnswerError
from common.math_answer.reader import read_answer
from common.math_answer.symbolic import (
    Sympy,
    check_admissible,
    has_to_be_worked_out,
    is_matrix,
    read_symbolic,
)
from common.references.math import SYMBOLIC_KIND, MathReference
from common.task_reference import read_reference

SYMBOLIC_CPU_LIMIT_S = 5.0
"""Processor seconds for one answer; of the same order as math-verify's own timeouts."""

_DIGITS = 30
_MAX_DIGITS = 200
_TOLERANCE = 1e-25
_POINTS = ((3, 5, 2, 7, 4, 6), (4, 2, 7, 3, 6, 5))
"""Small integers, since what is summed to ``n`` has a value there only."""

_CACHE_SIZE = 1024


def routed(check: Check) -> Check:
    """``check``, for :mod:`actors.verification.symbolic_pool` where its gold answer needs that."""
    if check.kind != "math" or not has_to_be_worked_out(check.reference_json.replace("\\\\", "\\")):
        return check
    if not _is_symbolic(check.reference_json):
        return check
    return Check(kind=SYMBOLIC_KIND, reference_json=check.reference_json)


@lru_cache(_CACHE_SIZE)
def _is_symbolic(reference_json: str) -> bool:
    try:
        return msgspec.json.decode(reference_json, type=MathReference).is_symbolic
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False  # whoever judges it says what is wrong with it


def judge_symbolic(completion: str, reference_json: str) -> Judgement:
    """1 when the final answer equals ``gold``; raises :class:`DataError` for a malformed gold.

    It imports sympy and has no bound on memory: for the killable, limited child only.
    """
    reference = read_reference(reference_json, MathReference)
    answer = extract_answer(completion, reference.extract)
    if answer is None:
        return Judgement.wrong_format("no final answer where the task wants it")
    return compare_symbolic(answer, reference.gold_text)


@lru_cache(_CACHE_SIZE)
def compare_symbolic(answer: str, gold: str) -> Judgement:
    """The judgement of an answer's text against such a gold answer's."""
    try:
        expected = read_symbolic(gold)
    except AnswerError as error:
        raise DataError(f"malformed task: gold {gold[:80]!r}: {error}") from None
    try:
        _check_form(answer)
        with cpu_limit(SYMBOLIC_CPU_LIMIT_S):
            return Judgement.graded(float(same_symbolic(read_symbolic(answer), expected)))
    except AnswerError as error:
        return Judgement.graded(0.0, str(error))
    except CpuLimitError:
        return Judgement.limit_exceeded(f"processor limit of {SYMBOLIC_CPU_LIMIT_S:g} s exceeded")


def _check_form(answer: str) -> None:
    """Raise :class:`AnswerError` unless ``answer`` is one expression or one matrix."""
    check_admissible(answer)
    if has_to_be_worked_out(answer):
        return
    if not isinstance(read_answer(answer), (*tree.EXPRESSIONS, tree.Matrix)):
        raise AnswerError("the answer must be one expression, as the gold answer is")


def same_symbolic(answer: Sympy, gold: Sympy) -> bool:
    """Whether nothing tells them apart in value, and sympy or math-verify says they are equal."""
    if is_matrix(answer) != is_matrix(gold):
        return False
    try:
        if any(_differ(answer, gold, point) for point in _POINTS):
            return False
        return _no_difference(answer, gold) or _verify(answer, gold)
    except MemoryError:
        raise
    except Exception as error:  # of any kind: what sympy cannot do is the answer's own doing
        raise AnswerError(f"sympy cannot compare it: {type(error).__name__}") from None


def _differ(answer: Sympy, gold: Sympy, point: tuple[int, ...]) -> bool:
    """Whether both have a value at ``point``, and not the same one."""
    import sympy

    names = sorted({symbol.name for side in (answer, gold) for symbol in side.free_symbols})
    numbers = dict(zip(names, itertools.cycle(point), strict=False))
    difference = _worked_out(answer, numbers) - _worked_out(gold, numbers)
    entries = list(difference) if is_matrix(difference) else [difference]
    values = [sympy.N(entry, _DIGITS, maxn=_MAX_DIGITS) for entry in entries]
    return any(value.is_number and abs(complex(value)) > _TOLERANCE for value in values)


def _worked_out(side: Sympy, numbers: dict[str, int]) -> Sympy:
    values = {symbol: numbers[symbol.name] for symbol in side.free_symbols}
    return side.subs(values).doit()


def _no_difference(answer: Sympy, gold: Sympy) -> bool:
    difference = answer.doit() - gold.doit()
    if is_matrix(difference):
        return all(entry == 0 for entry in difference)
    return bool(difference == 0)


def _verify(answer: Sympy, gold: Sympy) -> bool:
    from math_verify import verify

    return bool(
        verify(
            gold,
            answer,
            float_rounding=_DIGITS,
            numeric_precision=_DIGITS,
            timeout_seconds=None,
            raise_on_error=True,
        )
    )
