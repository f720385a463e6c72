"""Where the answer stands and when two answers are equal."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from common.answer_conventions import CONVENTIONS, Convention
from common.answers import (
    MAX_CONCLUSION_CHARS,
    MAX_NUMBER_CHARS,
    canonical_answer,
    extract_answer,
    parse_number,
)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<think>7+2=9</think><answer>31</answer>", "31"),
        ("<think></think>\n<answer>\n 31 \n</answer>\n", "31"),
        ("<answer>5</answer>", "5"),
        ("<think>a</think><answer>1</answer><answer>2</answer>", "2"),
        ("<think>a</think>so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{a\\}b}", "a\\}b"),
        ("\\boxed{9}<answer>8</answer>", "8"),
        ("<answer>it is \\boxed{8}, for sure</answer>", "8"),
        ("\\boxed{1}, \\boxed{2} and $\\boxed{3}$", "1, 2, 3"),
        ("\\boxed{1}\\boxed{1}", "1"),
        ("\\boxed{9}, \\boxed{1} but then \\boxed{2}", "2"),
        ("\\boxed{1 + \\boxed{2}}", "1 + \\boxed{2}"),
        ("\\boxed {5}", "5"),
        ("\\boxed{unclosed \\boxed{6}", "6"),
        ("} \\boxed{7}", "7"),
        ("<think>x</think> 31", None),
        ("", None),
    ],
)
def test_the_final_answer_is_the_last_answer_block_else_the_last_box(
    completion: str, answer: str | None
) -> None:
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("The final answer is 31.", "31"),
        ("The **final answer is**: 3.1 apples. I hope so.", "3.1 apples"),
        ("final answer is $31$. Done", "31"),
        ("the Final Answer is \\(\\frac{1}{2}\\), the final answer is \\[ 2 \\]!", "2"),
        ("final answer is $31", None),
        ("final answer is", None),
        ("\\boxed{1}, the final answer is 2", "1"),
    ],
)
def test_a_phrase_counts_where_it_is_asked_for(completion: str, answer: str | None) -> None:
    assert extract_answer(completion, CONVENTIONS) == answer
    assert extract_answer(completion) == ("1" if "boxed" in completion else None)


_ALL_FOUR = "The final answer is 3. So <answer>1</answer> or \\boxed{2}, in 4 days"


@pytest.mark.parametrize(
    ("conventions", "answer"),
    [
        (("answer-tag",), "1"),
        (("boxed",), "2"),
        (("final-answer",), "3"),
        (("last-number",), "4"),
        (("boxed", "answer-tag"), "2"),
        (("answer-tag", "boxed"), "1"),
        (("last-number", "final-answer", "boxed"), "4"),
    ],
)
def test_the_first_convention_that_finds_an_answer_decides(
    conventions: tuple[Convention, ...], answer: str
) -> None:
    assert extract_answer(_ALL_FOUR, conventions) == answer
    without = "<answer>5</answer>"
    found = "5" if {"answer-tag", "last-number"} & set(conventions) else None
    assert extract_answer(without, conventions) == found


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("so x = 3 or 4.", "4"),
        ("it costs $1,234.50 in all", "1,234.50"),
        ("from 7 to -8", "-8"),
        ("7-8", "8"),
        ("about 3 / 4 of it", "3 / 4"),
        ("in 10% of x2", "10"),
        ("on 1,2", "2"),
        ("none at all", None),
        ("<think>12</think> none", None),
    ],
)
def test_the_last_number_is_an_integer_decimal_or_ratio(
    completion: str, answer: str | None
) -> None:
    assert extract_answer(completion, ("last-number",)) == answer


@pytest.mark.parametrize(
    "completion",
    [
        "<think><answer>31</answer>",
        "<think><answer>31</answer></think>",
        "<think>\\boxed{31}</think>",
        "<answer>31</answer><think>or not</think>",
    ],
)
def test_what_is_said_while_thinking_is_no_answer(completion: str) -> None:
    assert extract_answer(completion) is None


@pytest.mark.parametrize(
    "completion",
    ["<answer>31", "31</answer>", "</answer>31<answer>", "<answer> </answer>", "\\boxed{3"],
)
def test_an_incomplete_or_empty_block_is_no_answer(completion: str) -> None:
    assert extract_answer(completion) is None


def test_extraction_takes_linear_time() -> None:
    hostile = "<answer>" * 50_000 + "\\boxed{" * 50_000 + "{" * 200_000
    started = time.perf_counter()
    assert extract_answer(hostile) is None
    for digits in ("1" * MAX_CONCLUSION_CHARS, "1,111" * 10_000 + "x", "1/" * 30_000):
        assert extract_answer(digits, ("last-number",))
    assert time.perf_counter() - started < 2.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("31", Fraction(31)),
        (" +31 ", Fraction(31)),
        ("-0", Fraction(0)),
        ("\u22127", Fraction(-7)),
        ("007", Fraction(7)),
        ("5.", Fraction(5)),
        (".5", Fraction(1, 2)),
        ("0.10", Fraction(1, 10)),
        ("1/2", Fraction(1, 2)),
        ("-3 / 6", Fraction(-1, 2)),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("9" * MAX_NUMBER_CHARS, Fraction(10**MAX_NUMBER_CHARS - 1)),
    ],
)
def test_numbers_are_read_exactly(text: str, value: Fraction) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "-",
        "1e5",
        "1,00",
        "1_000",
        "1 000",
        "1/0",
        "1/2/3",
        "0x10",
        "inf",
        "nan",
        "5%",
        "x=5",
        "7+2",
        "\u0665",
        "\u00b2",
        "9" * (MAX_NUMBER_CHARS + 1),
    ],
)
def test_other_texts_are_no_numbers(text: str) -> None:
    assert parse_number(text) is None


def test_equal_numbers_are_one_answer_and_other_texts_are_themselves() -> None:
    assert canonical_answer("1/2") == canonical_answer(".5") == canonical_answer("+0.50") == "1/2"
    assert canonical_answer("\\frac{1}{2}") == canonical_answer("2^{-1}") == "1/2"
    assert canonical_answer("x  =\n1") == "x = 1"
    assert canonical_answer("50\\%") == "50\\%"
    assert canonical_answer("1/3") != canonical_answer("0.333333")
