"""Scores of pieces of text arrive at the tokens that wrote them."""

from __future__ import annotations

import pytest

from actors.verification.judgement import Judgement
from actors.verification.steps import last_tokens, with_steps
from common.text_tokenizer import TextTokenizer
from common.types import RewardComponent, StepReward, Verdict, VerdictStatus
from learner.models.tiny_model import EOS_ID, PAD_ID, build_tokenizer

_TEXT = "1+2=3\n\n3+4=7\n\n\u00e9"


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(build_tokenizer([_TEXT]), (EOS_ID,), (PAD_ID,))


def _verdict(*weights: float) -> Verdict:
    parts = tuple(RewardComponent(name="process", value=0.2, weight=weight) for weight in weights)
    return Verdict(status=VerdictStatus.GRADED, reward=0.2, components=parts)


def _scored(values: tuple[float, ...], ends: tuple[int, ...]) -> Judgement:
    return Judgement(status=VerdictStatus.GRADED, value=0.2, step_values=values, step_ends=ends)


def test_what_each_token_has_written_is_what_decoding_says(tokenizer: TextTokenizer) -> None:
    """A character of two bytes is two tokens here: the first has written nothing."""
    ids = [*tokenizer.encode(_TEXT), tokenizer.eos_token_ids[0]]
    written = [
        len(tokenizer.decode(ids[: number + 1]).rstrip("\ufffd")) for number in range(len(ids))
    ]
    assert tokenizer.text_ends(ids) == written
    assert written[-4:] == [len(_TEXT) - 1, len(_TEXT) - 1, len(_TEXT), len(_TEXT)]


def test_a_step_ends_with_the_token_that_writes_its_last_character() -> None:
    assert last_tokens([3, 4, 9], [1, 3, 6, 9]) == [1, 2, 3]


def test_the_last_step_takes_the_end_of_the_answer_along(tokenizer: TextTokenizer) -> None:
    ids = [*tokenizer.encode(_TEXT), tokenizer.eos_token_ids[0]]
    found = with_steps(_verdict(2.0), [_scored((0.5, 0.25, 1.0), (5, 12, 15))], tokenizer, ids)
    assert found.steps == (
        StepReward(end=4, value=1.0),
        StepReward(end=11, value=0.5),
        StepReward(end=len(ids) - 1, value=2.0),
    )
    assert found.reward == 0.2


def test_several_terms_leave_open_what_a_step_is_worth(tokenizer: TextTokenizer) -> None:
    verdict = _verdict(1.0, 1.0)
    assert with_steps(verdict, [_scored((0.5,), (5,))], tokenizer, [1]) == verdict


def test_a_judgement_without_steps_adds_none(tokenizer: TextTokenizer) -> None:
    verdict = _verdict(1.0)
    assert with_steps(verdict, [Judgement.graded(1.0)], tokenizer, [1]) == verdict
