"""Answers to reasoning-gym puzzles that say everything at once, or next to nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from actors.verification.task_score import MAX_FARMED, WHOLE_MARKS, judge_task
from common.reasoning_gym_catalog import dataset_names, is_installed, make_dataset

pytestmark = pytest.mark.skipif(
    not is_installed(), reason="needs reasoning-gym (pip install 'headrace[tasks]')"
)


def _entry(name: str, answer: str, **metadata: object) -> dict[str, Any]:
    return {"question": "?", "answer": answer, "metadata": {"source_dataset": name, **metadata}}


def _value(answer: str, entry: dict[str, Any], *, partial: bool = False) -> float | None:
    reference = json.dumps({"entry": entry, "partial": partial}, default=str)
    return judge_task(f"<answer>{answer}</answer>", reference).value


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
    assert _value(answer, entry, partial=True) == pytest.approx(value)


_FARMED = {
    "calendar_arithmetic": "10",
    "coin_flip": "0.5",
    "figlet_font": "SPREES",
    "game_of_life": json.dumps([[0] * 10] * 10),
    "letter_jumble": "",
    "mini_sudoku": "2 4 3 1\n3 1 4 2\n4 2 1 3\n1 3 2 4",
    "polynomial_equations": "-0.0625",
    "propositional_logic": "0",
    "rectangle_count": "5",
    "sentence_reordering": "",
    "spell_backward": "",
    "sudoku": "8 4 3 9 1 2 6 7 5\n2 9 7 8 6 5 1 3 4\n5 6 1 4 7 3 8 9 2\n" * 3,
    "time_intervals": "04:50:08.827",
    "word_sorting": "",
}
"""Dataset -> one answer to all its problems; empty: what stands behind the last colon of each."""


def _farmed(name: str, entry: dict[str, Any]) -> str:
    if name == "knights_knaves":
        a_knave = entry["metadata"]["knight_knave_terms"]["a_knave"]
        return ", and ".join(f"{who} is {a_knave}" for who in entry["metadata"]["names"])
    return _FARMED[name] or entry["question"].rpartition(": ")[2].strip()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WHOLE_MARKS))
def test_one_answer_to_every_problem_earns_part_of_the_marks_only_where_it_is_asked_for(
    name: str,
) -> None:
    dataset = make_dataset(name, {}, seed=7)
    entries = [dataset[index] for index in range(40)]
    answers = [_farmed(name, entry) for entry in entries]
    values = {
        partial: [
            _value(answer, entry, partial=partial) or 0.0
            for answer, entry in zip(answers, entries, strict=True)
        ]
        for partial in (True, False)
    }
    assert sum(values[True]) / len(entries) > MAX_FARMED
    assert set(values[False]) <= {0.0, 1.0}
    assert values[False] == [float(value == 1.0) for value in values[True]]


def test_the_page_names_the_datasets_in_which_only_whole_marks_count() -> None:
    page = (Path(__file__).parents[4] / "docs" / "tasks.md").read_text(encoding="utf-8")
    table = page.split("| dataset | part of the marks, on the mean | for |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == WHOLE_MARKS
    assert set(dataset_names()) >= WHOLE_MARKS


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
