"""Answers to reasoning-gym puzzles that say everything at once, or next to nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.verification.task_score import judge_task
from common.reasoning_gym_catalog import is_installed, make_dataset

pytestmark = pytest.mark.skipif(
    not is_installed(), reason="needs reasoning-gym (pip install 'headrace[tasks]')"
)


def _entry(name: str, answer: str, **metadata: object) -> dict[str, Any]:
    return {"question": "?", "answer": answer, "metadata": {"source_dataset": name, **metadata}}


def _value(answer: str, entry: dict[str, Any]) -> float | None:
    return judge_task(f"<answer>{answer}</answer>", json.dumps({"entry": entry})).value


_KNIGHTS = _entry("knights_knaves", "Zoe is a knight, and Sam is a knave.")

# Each of these has marks by the dataset's own rule.
_HEDGES = [
    ("True False", _entry("course_schedule", "True")),
    ("False True", _entry("isomorphic_strings", "True")),
    ("Yes No", _entry("syllogism", "Yes")),
    ("yesYes", _entry("syllogism", "Yes")),
    ("841", _entry("chain_sum", "4")),
    ("0123456789", _entry("maze", "7")),
    ("-3", _entry("gcd", "3")),
    ("on off undetermined", _entry("acre", "off")),
    ("Zoe is a knight. Zoe is a knave", _KNIGHTS),
    ("Sam is a knave, Sam is a knight", _KNIGHTS),
    ("20 or 30 or 40", _entry("gsm_symbolic", "20")),
    ("20, 30", _entry("gsm_symbolic", "20")),
]


@pytest.mark.parametrize(("answer", "entry"), _HEDGES, ids=lambda item: str(item)[:30])
def test_naming_all_that_it_could_be_earns_nothing(answer: str, entry: dict[str, Any]) -> None:
    name = entry["metadata"]["source_dataset"]
    assert make_dataset(name, {}, seed=0).score_answer(answer, entry) > 0.0
    assert _value(answer, entry) == 0.0


@pytest.mark.parametrize(
    ("answer", "value", "entry"),
    [
        ("True", 1.0, _entry("course_schedule", "True")),
        ("7", 1.0, _entry("maze", "7")),
        ("20", 1.0, _entry("gsm_symbolic", "20")),
        ("20 apples", 1.0, _entry("gsm_symbolic", "20")),
        ("Sam is a knave and Zoe is a knight", 1.0, _KNIGHTS),
        ("Zoe is a knight, and Sam is a knight.", 0.65, _KNIGHTS),
        ("tna", 1 / 3, _entry("spell_backward", "tnatsissa", word="assistant", word_len=9)),
    ],
    ids=lambda item: str(item)[:30],
)
def test_one_answer_keeps_the_marks_that_its_dataset_gives(
    answer: str, value: float, entry: dict[str, Any]
) -> None:
    assert _value(answer, entry) == pytest.approx(value)


_POLYNOMIAL = _entry("polynomial_multiplication", "x**2 + 3*x + 2")


@pytest.mark.parametrize(
    "answer",
    [
        "x**2 if x else 0",
        "[x for x in (1, 2)]",
        "max(x, 2)",
        "lambda: 0",
        "x**9**9",
        "f'{x}'",
        "(x := 3)",
        "...",
        "\\N{LATIN SMALL LETTER X}",
        "x" * 5000,
        "((((" * 500,
    ],
)
def test_what_is_no_polynomial_has_no_full_marks(answer: str) -> None:
    value = _value(answer, _POLYNOMIAL)
    assert value is not None
    assert value < 0.1
