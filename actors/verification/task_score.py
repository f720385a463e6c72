"""Kind ``task``: the answer to a reasoning-gym entry, scored by the dataset that made the entry.

The value is that dataset's own ``score_answer``, within 0..1 and often partial. Where its rule
gives marks for nothing, an answer must also pass a rule of ours: :data:`STRICTER` for full marks,
:data:`NOT_HEDGED` for part of them, and no dataset gives any to an answer for the only merit that
the right one occurs in it, as in ``True False``. Marks below 1 do not count in :data:`WHOLE_MARKS`.

====================================== ==========================================================
what happens                           outcome
====================================== ==========================================================
no final answer                        ``wrong-format``, 0
a score within 0..1                    ``graded``
the scorer raises, but scores 1 for    ``graded``, 0: it is the answer that it cannot read
the entry's own answer
it raises for that too, or the name    ``bad-input``: the entry is broken
or an option is unknown
a score that is no number in 0..1      ``infra-error``: the scorer is broken
time or memory runs out                ``limit-exceeded``, 0
====================================== ==========================================================
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from actors.verification.countdown import ExpressionError, evaluate
from actors.verification.judgement import Judgement
from actors.verification.task_guard import no_code_from_answers
from common.answers import extract_answer, parse_number
from common.errors import ConfigError, DataError, InfraError
from common.reasoning_gym_catalog import Dataset, find_dataset, make_dataset
from common.references.task import TaskReference
from common.task_reference import read_reference

_TUPLES_NEEDED = frozenset({"arc_agi", "rearc"})
"""Datasets that compare tuples in their metadata with tuples; JSON has only lists."""

_SEED = 0
_ROUNDING = 1e-6
"""Some scorers sum parts that add up to a little more than 1."""

MAX_FARMED = 0.05
"""Part of the marks that one answer to every problem, or the question repeated, may earn.

On the mean over fifty problems; so much many datasets give to any answer that they can read.
"""

WHOLE_MARKS = frozenset(
    (
        *("calendar_arithmetic", "coin_flip", "figlet_font", "game_of_life", "knights_knaves"),
        *(
            "letter_jumble",
            "mini_sudoku",
            "polynomial_equations",
            "propositional_logic",
            "rectangle_count",
        ),
        *("sentence_reordering", "spell_backward", "sudoku", "time_intervals", "word_sorting"),
    )
)
"""Datasets in which such an answer earns more: marks below 1 count only with ``partial``."""

ONLY_WHOLE_MARKS = "below 1 nothing counts here (partial = true asks for it)"
UNDESERVED = "the answer does not pass the stricter rule for this dataset"
_NOT_A_NUMBER = re.compile(r"nan|inf", re.IGNORECASE)
_DIGITS = re.compile(r"\d+(?:[.,]\d+)*")

Entry = Mapping[str, Any]


def judge_task(completion: str, reference_json: str) -> Judgement:
    """The score of the final answer by the entry's own dataset; see the table above."""
    reference = read_reference(reference_json, TaskReference)
    try:
        name = find_dataset(reference.dataset)
        dataset = _dataset(name, json.dumps(reference.options, sort_keys=True))
    except ConfigError as error:
        raise DataError(f"malformed task: {error}") from None
    answer = extract_answer(completion)
    if answer is None:
        return Judgement.wrong_format("no final answer in <answer> or \\boxed{}")
    entry = _with_tuples(reference.entry) if name in _TUPLES_NEEDED else reference.entry
    judgement = _judge(name, dataset, answer, entry)
    if name in WHOLE_MARKS and not reference.partial and 0.0 < (judgement.value or 0.0) < 1.0:
        return Judgement.graded(0.0, f"{name} would give {judgement.value:.2g}: {ONLY_WHOLE_MARKS}")
    return judgement


def _judge(name: str, dataset: Dataset, answer: str, entry: dict[str, Any]) -> Judgement:
    try:
        score = _score(dataset, answer, entry)
    except (MemoryError, InfraError):
        raise
    except Exception as error:  # a scorer may raise anything at what it cannot read
        if not _scores_its_own_answer(dataset, entry):
            raise DataError(f"malformed task: {name} cannot score this entry: {error!r}") from None
        return Judgement.graded(0.0, f"{name} cannot read the answer: {type(error).__name__}")
    strict = (STRICTER if score >= 1.0 else NOT_HEDGED).get(name)
    if score > 0.0 and strict is not None and not strict(answer, entry):
        marks = "full marks" if score >= 1.0 else f"{score:.2g}"
        return Judgement.graded(0.0, f"{name} would give {marks}, but {UNDESERVED}")
    if _only_contains(answer, entry, score):
        return Judgement.graded(0.0, "the right answer is only a part of this one")
    return Judgement.graded(score)


def _only_contains(answer: str, entry: Entry, score: float) -> bool:
    """Most scorers fall back on the share of the answer's characters that are the right one.

    By that every answer that names all it can think of is worth something: ``True False`` half, and
    841 a third where 4 is right.
    """
    gold = entry["answer"]
    if not isinstance(gold, str) or not 0.0 < score < 1.0 or gold not in answer:
        return False
    return math.isclose(score, len(gold) / len(answer), abs_tol=1e-9)


def _score(dataset: Dataset, answer: str, entry: dict[str, Any]) -> float:
    """Raises :class:`InfraError` for a score that is none."""
    random.seed(_SEED)  # a scorer may draw: the same answer must get the same score
    with no_code_from_answers():
        score: object = dataset.score_answer(answer, entry)
    try:
        value = float(score)  # type: ignore[arg-type]  # a NumPy number or a bool is one, too
    except (TypeError, ValueError):
        value = math.nan
    if not -_ROUNDING <= value <= 1.0 + _ROUNDING:
        raise InfraError(f"the scorer of a reasoning-gym task gave {score!r}, not a number in 0..1")
    return min(max(value, 0.0), 1.0)


def _scores_its_own_answer(dataset: Dataset, entry: dict[str, Any]) -> bool:
    """Whether the entry is whole: its own answer, if it has one, scores 1."""
    try:
        gold = entry["answer"]
        return _score(dataset, "" if gold is None else gold, entry) == 1.0 or gold is None
    except (MemoryError, InfraError):
        raise
    except Exception:
        return False


@functools.lru_cache(maxsize=64)
def _dataset(name: str, options_json: str) -> Dataset:
    return make_dataset(name, json.loads(options_json), seed=_SEED)


def _with_tuples(value: Any) -> Any:
    """Lists inside an entry as tuples."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    return value


def _says_the_truth_value(answer: str, entry: Entry) -> bool:
    """Its scorer takes any text that is not empty for True, and so is every gold answer."""
    return answer.strip().casefold() == str(entry["answer"]).casefold()


def _is_close_number(answer: str, entry: Entry) -> bool:
    """Its scorer gives full marks to every prefix, and takes 0 for a probability of 0.00003."""
    value, gold = _number(answer), _number(str(entry["answer"]))
    return abs(value - gold) <= min(1e-4, 0.01 * gold)


def _number(text: str) -> float:
    """A ratio, decimal or number with exponent; NaN for anything else."""
    ratio = parse_number(text)
    try:
        return float(text if ratio is None else ratio)
    except (ValueError, OverflowError):
        return math.nan


def _is_finite(answer: str, _: Entry) -> bool:
    """Its scorer takes min(1, exp(-distance)), which is 1 for a distance that is not a number."""
    return not _NOT_A_NUMBER.search(answer)


def _has_the_sign(answer: str, entry: Entry) -> bool:
    """Its scorer overlooks a minus sign, and all numbers but the first: it takes -20 for 20."""
    value = parse_number(answer)
    if value is None:
        return len(_DIGITS.findall(answer)) == 1
    return value == parse_number(str(entry["answer"]))


def _gives_each_one_role(answer: str, _: Entry) -> bool:
    """Its scorer counts who is said to be what: ``A is a knight, A is a knave`` is half right."""
    words = re.findall(r"\w+", answer.lower())
    names = [name for name, verb in itertools.pairwise(words) if verb == "is"]
    return len(names) == len(set(names))


def _is_same_json(answer: str, entry: Entry) -> bool:
    """Its scorer compares trees of values, in which ``{}`` and ``[]`` are alike."""
    if answer.strip() == entry["answer"].strip():
        return True
    try:
        return bool(json.loads(answer) == json.loads(entry["answer"]))
    except (ValueError, RecursionError):
        return False


def _is_plain_arithmetic(answer: str, _: Entry) -> bool:
    """Its scorer reads ``2**3``, ``3.8`` and ``4!`` as two numbers or one, whichever helps."""
    try:
        evaluate(re.sub(r"(^|\()(\s*)-", r"\1\g<2>0-", answer.strip()))
    except (ExpressionError, ZeroDivisionError):
        return False
    return True


def _uses_the_numbers(answer: str, entry: Entry) -> bool:
    """Its scorer takes any four numbers: ``1*2*3*4`` solves every puzzle."""
    try:
        value, used = evaluate(answer.strip())
    except (ExpressionError, ZeroDivisionError):
        return False
    return value == 24 and Counter(used) == Counter(entry["metadata"]["numbers"])


STRICTER: dict[str, Callable[[str, Entry], bool]] = {
    "codeio": _is_same_json,
    "coin_flip": _is_close_number,
    "complex_arithmetic": _is_finite,
    "countdown": _is_plain_arithmetic,
    "game_of_life_halting": _says_the_truth_value,
    "gsm_symbolic": _has_the_sign,
    "puzzle24": _uses_the_numbers,
}
"""Dataset -> what an answer must pass besides the dataset's own scorer to have full marks."""

NOT_HEDGED: dict[str, Callable[[str, Entry], bool]] = {"knights_knaves": _gives_each_one_role}
"""Dataset -> what an answer must pass to keep part of the marks."""
