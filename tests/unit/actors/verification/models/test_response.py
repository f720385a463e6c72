"""What a model is shown of a completion: the summary, or the steps."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.verification.models.response import (
    AGGREGATIONS,
    STEP_BORDERS,
    final_summary,
    split_steps,
)


@pytest.mark.parametrize(
    ("completion", "summary"),
    [
        ("<think>a</think> The answer is 3. ", "The answer is 3."),
        ("a</think>b</think>c", "c"),
        ("no tags at all", "no tags at all"),
        ("<think>never closed", None),
        ("<think>closed</think>  \n", None),
        ("", None),
    ],
)
def test_the_summary_is_what_stands_after_the_last_thought(
    completion: str, summary: str | None
) -> None:
    assert final_summary(completion) == summary


@pytest.mark.parametrize(
    ("borders", "text", "steps"),
    [
        ("blank-line", "a\nb\n\nc\n \n\n d ", ["a\nb", "c", "d"]),
        ("newline", "a\n\n b\nc", ["a", "b", "c"]),
        ("numbered", "So:\n1. one\n more\n2) two\nStep 3: three", ["So:", "1. one\n more", "2) two",
                                                               "Step 3: three"]),
        ("numbered", "there are 2. of them", ["there are 2. of them"]),
        ("newline", " \n \n", []),
    ],
)  # fmt: skip
def test_steps_are_cut_where_the_splitter_declares(
    borders: str, text: str, steps: list[str]
) -> None:
    assert [text[step.start : step.end] for step in split_steps(text, borders)] == steps


@given(st.text("ab1.\n "), st.sampled_from(sorted(STEP_BORDERS)))
def test_no_character_that_is_not_blank_falls_between_two_steps(text: str, borders: str) -> None:
    steps = split_steps(text, borders)
    inside = "".join(text[step.start : step.end] for step in steps)
    assert "".join(inside.split()) == "".join(text.split())
    assert all(before.end <= after.start for before, after in itertools.pairwise(steps))


@pytest.mark.parametrize("borders", sorted(STEP_BORDERS))
@pytest.mark.parametrize("unit", ["\n", "\n ", " ", "\nstep ", "\nstep\n"])
def test_blanks_without_end_are_cut_in_linear_time(unit: str, borders: str) -> None:
    started_s = time.process_time()
    split_steps(unit * 20_000 + "x", borders)
    assert time.process_time() - started_s < 2.0


@pytest.mark.parametrize("nothing", ["\u200b", "&nbsp;", "$$", "<!-- 1. so -->"])
def test_what_shows_nothing_is_no_step(nothing: str) -> None:
    text = f"a\n\n{nothing}\n\nb"
    assert [text[step.start : step.end] for step in split_steps(text, "blank-line")] == ["a", "b"]


def test_an_answer_is_as_good_as_its_worst_step_or_as_all_of_them() -> None:
    assert AGGREGATIONS["min"]([0.9, 0.2, 0.5]) == 0.2
    assert AGGREGATIONS["product"]([0.5, 0.5, 0.8]) == pytest.approx(0.2)
