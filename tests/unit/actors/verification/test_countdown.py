"""Countdown: own parser, exact values, every number exactly once."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.verification.countdown import (
    MAX_DEPTH,
    MAX_EXPRESSION_CHARS,
    ExpressionError,
    evaluate,
    judge_countdown,
)
from common.errors import DataError
from common.types import VerdictStatus

_TASK = '{"numbers":[3,3,8,8],"target":24}'


def _judge(answer: str, task: str = _TASK) -> float | None:
    judgement = judge_countdown(f"<think></think><answer>{answer}</answer>", task)
    assert judgement.status is VerdictStatus.GRADED
    return judgement.value


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("8/(3-8/3)", 1.0),
        (" 8 \u00f7 ( 3 \u2212 8 \u00f7 3 ) ", 1.0),
        ("8*3", 0.0),
        ("8*3+8-8", 0.0),
        ("8+8+3+3", 0.0),
        ("8/(3-8/3)=24", 0.0),
        ("24", 0.0),
        ("8/(3-8/3", 0.0),
        ("8/(8-8)*3*3", 0.0),
        ("-8+8*(3+3)", 0.0),
        ("8**3+8-3", 0.0),
        ("8//3", 0.0),
        ("", None),
        ("eval('24')", 0.0),
    ],
)
def test_an_answer_counts_when_it_uses_every_number_once_and_hits_the_target(
    answer: str, value: float | None
) -> None:
    if value is None:
        completion = f"<think></think><answer>{answer}</answer>"
        assert judge_countdown(completion, _TASK).status is VerdictStatus.WRONG_FORMAT
    else:
        assert _judge(answer) == value


def test_a_repeated_number_must_be_used_as_often_as_it_is_given() -> None:
    assert _judge("2+2+3", '{"numbers":[2,2,3],"target":7}') == 1.0
    assert _judge("2+2+3", '{"numbers":[2,3],"target":7}') == 0.0


def test_division_is_exact() -> None:
    assert evaluate("1/3*3") == (Fraction(1), [1, 3, 3])
    assert evaluate("10-4-3")[0] == 3
    assert evaluate("100/10/5")[0] == 2
    assert evaluate("2+3*4")[0] == 14


@pytest.mark.parametrize(
    "expression",
    [
        "(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1),
        "1" * (MAX_EXPRESSION_CHARS + 1),
        "1+",
        "()",
        "1 2",
        ")1",
        "1)",
        "\u0661+1",
    ],
)
def test_what_is_no_expression_is_refused(expression: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate(expression)


def test_parentheses_up_to_the_limit_are_read() -> None:
    assert evaluate("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH)[0] == 1


_Expression = tuple[str, Fraction | None, list[int]]


def _combine(left: _Expression, operator: str, right: _Expression) -> _Expression:
    a, b = left[1], right[1]
    value: Fraction | None = None
    if a is not None and b is not None and not (operator == "/" and b == 0):
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[operator]
    return f"({left[0]} {operator}{right[0]})", value, left[2] + right[2]


_EXPRESSIONS: st.SearchStrategy[_Expression] = st.recursive(
    st.integers(0, 99).map(lambda number: (str(number), Fraction(number), [number])),
    lambda inner: st.builds(_combine, inner, st.sampled_from("+-*/"), inner),
    max_leaves=12,
)


@given(_EXPRESSIONS)
def test_every_expression_has_its_exact_value_and_its_numbers_in_order(
    expression: _Expression,
) -> None:
    text, value, numbers = expression
    if value is None:
        with pytest.raises(ZeroDivisionError):
            evaluate(text)
    else:
        assert evaluate(text) == (value, numbers)


@given(st.text(alphabet="0123456789+-*/() ", max_size=60))
def test_any_other_text_is_an_error_of_the_expected_kind(text: str) -> None:
    judgement = judge_countdown(f"<answer>{text}</answer>", _TASK)
    assert judgement.value in (0.0, 1.0)


@pytest.mark.parametrize(
    "task",
    [
        "{}",
        '{"numbers":[],"target":1}',
        '{"numbers":[1.5],"target":1}',
        '{"numbers":[-1],"target":1}',
        '{"numbers":[1],"target":"1"}',
        '{"numbers":[1000000000001],"target":1}',
    ],
)
def test_a_malformed_task_is_not_judged(task: str) -> None:
    with pytest.raises(DataError, match="malformed task"):
        judge_countdown("<answer>1</answer>", task)
