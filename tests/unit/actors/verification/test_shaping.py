"""Length and repetition terms against the papers' numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.verification.shaping import (
    cosine_reward,
    overlong_penalty,
    repeat_ratio,
    repetition_penalty,
)
from common.reward_terms import CosineOptions, OverlongOptions, RepetitionOptions

_OVERLONG = OverlongOptions(max_tokens=100, cache_tokens=20)
_COSINE = CosineOptions(max_tokens=1000)


@pytest.mark.parametrize(
    ("num_tokens", "penalty"),
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (101, -1.0), (5000, -1.0)],
)
def test_the_soft_overlong_penalty_of_dapo(num_tokens: int, penalty: float) -> None:
    assert overlong_penalty(num_tokens, _OVERLONG) == pytest.approx(penalty)


@given(st.integers(0, 300))
def test_the_overlong_penalty_never_rises_with_length(num_tokens: int) -> None:
    shorter, longer = (overlong_penalty(num_tokens + extra, _OVERLONG) for extra in (0, 1))
    assert -1.0 <= longer <= shorter <= 0.0


@pytest.mark.parametrize(
    ("num_tokens", "is_right", "reward"),
    [
        (0, True, 1.0),
        (500, True, 0.75),
        (0, False, -1.0),
        (500, False, -0.75),
        (250, True, 0.5 + 0.25 * (1 + math.sqrt(0.5))),
        (1000, True, -1.0),
        (1000, False, -1.0),
        (1700, True, -1.0),
    ],
)
def test_the_cosine_reward(num_tokens: int, is_right: bool, reward: float) -> None:
    assert cosine_reward(num_tokens, is_right, _COSINE) == pytest.approx(reward)


@given(st.integers(0, 998))
def test_right_answers_gain_from_being_short_and_wrong_ones_from_being_long(
    num_tokens: int,
) -> None:
    right = [cosine_reward(num_tokens + extra, True, _COSINE) for extra in (0, 1)]
    wrong = [cosine_reward(num_tokens + extra, False, _COSINE) for extra in (0, 1)]
    assert 0.5 < right[1] < right[0] <= 1.0
    assert -1.0 <= wrong[0] < wrong[1] < -0.5


@pytest.mark.parametrize(
    ("token_ids", "ngram", "penalty"),
    [
        ([5, 5, 5, 5, 5], 2, -0.75),  # four bigrams, one distinct: TRL's own example
        ([1, 2, 3, 4, 5], 2, 0.0),
        ([1, 2, 1, 2], 2, -1 / 3),
        ([1, 2, 1, 2], 1, -0.5),
        ([7, 7], 3, 0.0),
        ([], 2, 0.0),
    ],
)
def test_the_repetition_penalty(token_ids: list[int], ngram: int, penalty: float) -> None:
    options = RepetitionOptions(ngram=ngram)
    assert repetition_penalty(token_ids, options) == pytest.approx(penalty)


def test_the_greatest_penalty_scales_the_share() -> None:
    options = RepetitionOptions(ngram=2, max_penalty=-0.1)
    assert repetition_penalty([5] * 5, options) == pytest.approx(-0.075)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4))
def test_the_repeat_ratio_counts_ngrams_as_a_slow_count_does(ids: list[int], ngram: int) -> None:
    ngrams = [tuple(ids[start : start + ngram]) for start in range(len(ids) - ngram + 1)]
    expected = sum(item in ngrams[:place] for place, item in enumerate(ngrams))
    assert repeat_ratio(ids, ngram) == pytest.approx(expected / len(ngrams) if ngrams else 0.0)
