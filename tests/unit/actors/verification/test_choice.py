"""Multiple choice: every spelling of one letter, and nothing that names more or less than one."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.verification.choice import MAX_ANSWER_CHARS, judge_choice, read_choice
from common.errors import DataError
from common.types import VerdictStatus

_CITIES = ["London", "Paris", "Rome", "Lima"]


def _judge(answer: str, gold: str = "B", options: object = None) -> tuple[float | None, str]:
    fields = {"gold": gold} if options is None else {"gold": gold, "options": options}
    judgement = judge_choice(f"<think>A?</think><answer>{answer}</answer>", json.dumps(fields))
    assert judgement.status is VerdictStatus.GRADED
    return judgement.value, judgement.reason


@pytest.mark.parametrize("options", [None, _CITIES], ids=["letters only", "with options"])
@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "b",
        "(B)",
        "(b)",
        "[B]",
        "( B )",
        "B)",
        "B.",
        "B:",
        " B \n",
        "**B**",
        "**(B)**",
        "`B`",
        '"B"',
        "\u201cB\u201d",
        "$B$",
        "$\\text{B}$",
        "\\(B\\)",
        "\\text{B}",
        "\\text{(B)}",
        "\\textbf{B}",
        "\\mathrm{B}.",
        "\\boxed{B}",
        "\\boxed{{B}}",
        "{B}",
        "\\boxed{\\text{B}}",
        "$\\boxed{\\textbf{(B)}}$",
        "Option B",
        "option (b)",
        "choice B.",
        "Answer: B",
        "answer B",
        "the answer is B",
        "The answer is (B).",
        "The correct answer is option B.",
        "So the final answer is \\boxed{B}",
        "Therefore, the correct option is B",
        "\uff22",
        "\uff08\uff22\uff09",
        "\u24b7",
        "\u249d",
        "\U0001d401",
        "B\u200b",
        "(B) Paris",
        "B) Paris",
        "B. Paris",
        "B: paris.",
        "B.  Paris ",
        "The answer is B) Paris",
        "\\textbf{(B)} Paris",
    ],
)
def test_every_spelling_of_the_right_letter_counts(answer: str, options: list[str] | None) -> None:
    assert _judge(answer, options=options) == (1.0, "")
    assert _judge(answer, gold="C", options=options)[0] == 0.0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("A or B", "several letters"),
        ("A, B", "several letters"),
        ("B and C", "several letters"),
        ("B C", "several letters"),
        ("A/B/C/D", "several letters"),
        ("(A)(B)(C)(D)", "several letters"),
        ("B) or C)", "several letters"),
        ("B. (or C.)", "several letters"),
        ("B) A", "several letters"),
        ("B) is wrong, so the answer must be C", "several letters"),
        ("B) C is right", "several letters"),
        ("B. No, I choose C", "several letters"),
        ("B: not C", "several letters"),
        ("ABCD", "names no option"),
        ("B!", "names no option"),
        ("I think B because A is wrong", "names no option"),
        ("not A", "names no option"),
        ("the answer", "names no option"),
        ("\u0412", "names no option"),
        ("\u0392", "names no option"),
        ("2", "names no option"),
        ("\u0131", "names no option"),
    ],
)
def test_what_names_several_or_no_letters_scores_0_and_says_why(answer: str, reason: str) -> None:
    assert _judge(answer) == (0.0, reason)
    assert _judge(answer, options=_CITIES) == (0.0, reason)


@pytest.mark.parametrize(
    ("answer", "value", "reason"),
    [
        ("Paris", 1.0, ""),
        (" the answer is  PARIS. ", 1.0, ""),
        ("\\text{Paris}", 1.0, ""),
        ("Rome", 0.0, ""),
        ("Paris or Rome", 0.0, "names no option"),
        ("Berlin", 0.0, "names no option"),
        ("B) London", 0.0, "letter and text disagree"),
        ("C) Paris", 0.0, "letter and text disagree"),
        ("B) Paris C) Rome", 0.0, "several letters"),
        ("E", 0.0, "no option has the letter E"),
        ("(Z)", 0.0, "no option has the letter Z"),
        ("E) Paris", 0.0, "no option has the letter E"),
    ],
)
def test_an_options_own_text_counts_and_must_agree_with_the_letter(
    answer: str, value: float, reason: str
) -> None:
    assert _judge(answer, options=_CITIES) == (value, reason)


def test_a_text_that_two_options_share_names_neither() -> None:
    assert _judge("5", options=["4", "5", "5.", "6"]) == (0.0, "several options have this text")
    assert _judge("5", options=["4", "5", ".5", "-5"]) == (1.0, "")


def test_a_letter_in_the_text_of_an_option_is_no_second_choice() -> None:
    for text in ("Vitamin C", "hepatitis A and its cause", "a point P on the line"):
        assert _judge(f"B) {text}") == (1.0, "")
        assert _judge(f"B) {text}", options=["x", text, "y"]) == (1.0, "")


def test_a_letter_is_a_letter_before_it_is_a_text() -> None:
    assert _judge("A", gold="B", options=["B", "A"])[0] == 0.0
    assert _judge("B", gold="B", options=["B", "A"])[0] == 1.0
    assert _judge("x", gold="A", options=["x", "y", "z"])[0] == 1.0


def test_marks_that_change_a_text_are_not_taken_off() -> None:
    options = ["f", "f'", "5!", "5"]
    for gold, text in zip("ABCD", options, strict=True):
        for other in options:
            assert _judge(other, gold=gold, options=options)[0] == float(other == text)


def test_options_may_be_an_object_or_bring_their_labels() -> None:
    assert _judge("Paris", options={"A": "London", "B": "Paris"})[0] == 1.0
    assert _judge("Paris", options=["(A) London", "(B) Paris"])[0] == 1.0
    assert _judge("B) Paris", options=["A. London", "B. Paris"])[0] == 1.0
    assert _judge("d-glucose", gold="A", options=["D-glucose", "A) b"])[0] == 1.0


def test_without_an_answer_block_the_format_is_wrong() -> None:
    for completion in ("B", "<think>\\boxed{B}</think>", "<think></think><answer> </answer>"):
        assert judge_choice(completion, '{"gold":"B"}').status is VerdictStatus.WRONG_FORMAT
    assert judge_choice("so \\boxed{B}", '{"gold":"B"}').value == 1.0


def test_the_last_answer_block_decides() -> None:
    both = "<answer>B</answer> <answer>C</answer>"
    assert judge_choice(both, '{"gold":"B"}').value == 0.0
    assert judge_choice(both, '{"gold":"C"}').value == 1.0


@pytest.mark.parametrize(
    "fields",
    [
        "{}",
        '{"gold":""}',
        '{"gold":"BC"}',
        '{"gold":"2"}',
        '{"gold":1}',
        '{"gold":"\u0412"}',
        '{"gold":"E","options":["a","b","c","d"]}',
        '{"gold":"A","options":["a"]}',
        '{"gold":"A","options":["a",""]}',
        '{"gold":"A","options":"ab"}',
        '{"gold":"A","options":{"A":"a","C":"c"}}',
        '{"gold":"A","options":{"A":"a","a":"c"}}',
        json.dumps({"gold": "A", "options": ["x"] * 27}),
        "[" * 100_000,
    ],
)
def test_a_malformed_task_is_not_judged(fields: str) -> None:
    with pytest.raises(DataError, match="malformed task"):
        judge_choice("<answer>A</answer>", fields)


def test_26_options_have_26_letters() -> None:
    options = [f"option number {number}" for number in range(26)]
    for letter in string.ascii_uppercase:
        assert _judge(f"({letter})", gold=letter, options=options) == (1.0, "")
        assert _judge(f"({letter})", gold="A" if letter != "A" else "B", options=options)[0] == 0.0


def _rows_of_the_document() -> list[tuple[str, float, bool]]:
    """(answer, value where B is right, whether the options must be known) of docs/tasks.md."""
    page = (Path(__file__).parents[4] / "docs" / "tasks.md").read_text(encoding="utf-8")
    table = page.partition("| where the gold answer is B |")[2].partition("\n\n")[0]
    rows = []
    for line in table.splitlines()[2:]:
        answers, reading, value = (cell.strip() for cell in line.strip("| ").split(" | "))
        needs_options = "this text" in reading
        rows += [(text, float(value), needs_options) for text in re.findall(r"`([^`]+)`", answers)]
    return rows


def test_the_table_of_the_document_holds() -> None:
    rows = _rows_of_the_document()
    assert len(rows) > 25
    for answer, value, needs_options in rows:
        assert _judge(answer, options=_CITIES)[0] == value, answer
        if not needs_options and "London" not in answer:
            assert _judge(answer)[0] == value, answer


@given(st.text("ABCDabcd()[].,:$\\{}*'\" ", max_size=16))
def test_no_letter_is_read_otherwise_than_another(answer: str) -> None:
    swap = str.maketrans("BCbc", "CBcb")
    letter, reason = read_choice(answer, "ABCD", {})
    swapped, swapped_reason = read_choice(answer.translate(swap), "ABCD", {})
    assert (letter is None) == bool(reason)
    assert swapped_reason == reason
    assert swapped == (None if letter is None else letter.translate(swap))


@pytest.mark.parametrize(
    "answer",
    [
        "$" * MAX_ANSWER_CHARS,
        "(" * MAX_ANSWER_CHARS,
        "\\text{" * (MAX_ANSWER_CHARS // 6),
        "\\text" + " " * (MAX_ANSWER_CHARS - 5),
        "the answer is " * (MAX_ANSWER_CHARS // 14),
        "B) " + "A ( " * (MAX_ANSWER_CHARS // 5),
        "B" * (MAX_ANSWER_CHARS + 1),
    ],
    ids=["dollars", "parentheses", "commands", "blanks", "phrases", "labels", "too long"],
)
@pytest.mark.timeout(5)
def test_a_long_answer_is_read_in_linear_time(answer: str) -> None:
    assert _judge(answer, gold="D")[0] == 0.0
