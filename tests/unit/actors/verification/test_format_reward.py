"""The form of a completion, beyond the table in docs/rewards.md."""

from __future__ import annotations

import pytest

from actors.verification.format_reward import judge_format, parse_special_token
from common.errors import DataError
from common.types import VerdictStatus

_R1_ZERO = '{"template":"r1-zero"}'
_SPECIAL = '{"template":"special-token"}'


def _value(completion: str, reference_json: str) -> float | None:
    judgement = judge_format(completion, reference_json)
    judged_right = judgement.value == 1.0
    assert (judgement.status is VerdictStatus.GRADED) == judged_right
    assert (judgement.reason == "") == judged_right
    return judgement.value


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "<think>7+2=9,9+9=18",
        "<answer>42</answer><think>r</think>",
        "<think>r<answer>42</think></answer>",
        "<think>r</think>so<answer>42</answer>",
        "<THINK>r</THINK><ANSWER>42</ANSWER>",
    ],
)
def test_other_arrangements_of_the_tags_are_wrong(completion: str) -> None:
    assert _value(completion, _R1_ZERO) == 0.0


def test_the_special_token_can_be_chosen() -> None:
    reference = '{"template":"special-token","token":"<|sep|>"}'
    assert _value("<|sep|>r<|sep|>s", reference) == 1.0
    assert _value("|special_token|r|special_token|s", reference) == 0.0


def test_reasoning_and_summary_come_back_as_written() -> None:
    assert parse_special_token("|special_token| a\n|special_token|b ") == (" a\n", "b ")


@pytest.mark.parametrize(
    "reference_json",
    ["{}", '{"template":"r2"}', '{"template":"special-token","token":""}', "[1]", "{"],
)
def test_a_malformed_task_is_not_judged(reference_json: str) -> None:
    with pytest.raises(DataError, match="malformed task"):
        judge_format("<think></think><answer>1</answer>", reference_json)
