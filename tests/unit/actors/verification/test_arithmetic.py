"""Exact comparison of final numbers."""

from __future__ import annotations

import pytest

from actors.verification.arithmetic import judge_arithmetic
from common.errors import DataError
from common.types import VerdictStatus


def _answer(text: str) -> str:
    return f"<think>7+2=9</think><answer>{text}</answer>"


@pytest.mark.parametrize(
    ("answer", "gold_json", "value"),
    [
        ("31", '"31"', 1.0),
        ("31", "31", 1.0),
        (" 31.0 ", '"31"', 1.0),
        ("1/2", "0.5", 1.0),
        ("0.1", "0.1", 1.0),
        ("-7", '"\u22127"', 1.0),
        ("1,000", '"1000"', 1.0),
        ("62/4", "15.5", 1.0),
        ("31/1", '"31"', 0.0),
        ("3844/124", '"31"', 0.0),
        ("13", '"31"', 0.0),
        ("31.0000000000000000001", '"31"', 0.0),
        ("0.333333", '"1/3"', 0.0),
        ("7+2+22", '"31"', 0.0),
        ("31 apples", '"31"', 0.0),
        ("__import__('os').getpid()", '"31"', 0.0),
    ],
)
def test_the_answer_is_right_exactly_when_the_numbers_are_equal(
    answer: str, gold_json: str, value: float
) -> None:
    judgement = judge_arithmetic(_answer(answer), f'{{"gold":{gold_json}}}')
    assert (judgement.status, judgement.value) == (VerdictStatus.GRADED, value)


def test_the_last_box_is_an_answer_too() -> None:
    assert judge_arithmetic("so \\boxed{30}, no: \\boxed{31}", '{"gold":"31"}').value == 1.0


@pytest.mark.parametrize("completion", ["31", "<think>31", "<think><answer>31</answer></think>"])
def test_a_completion_without_a_final_answer_has_the_wrong_format(completion: str) -> None:
    judgement = judge_arithmetic(completion, '{"gold":"31"}')
    assert (judgement.status, judgement.value) == (VerdictStatus.WRONG_FORMAT, 0.0)


@pytest.mark.parametrize(
    "reference_json",
    ["{}", '{"gold":null}', '{"gold":true}', '{"gold":"x"}', '{"gold":""}', "", "[" * 100_000],
)
def test_a_malformed_gold_is_not_judged(reference_json: str) -> None:
    with pytest.raises(DataError, match="malformed task"):
        judge_arithmetic(_answer("31"), reference_json)
