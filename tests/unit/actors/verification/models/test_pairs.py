"""Pairs for a reward model come from differences, not from places or lengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.verification.models.pairs import (
    PairJudgement,
    PreferencePair,
    balance_lengths,
    build_pair,
    judging_orders,
)


def _judged(score_a: float, score_b: float, *, place_bonus: float = 0.0) -> list[PairJudgement]:
    """Four judgements by a judge that adds ``place_bonus`` to whatever stands first."""
    return [
        PairJudgement(swapped, score_b + place_bonus, score_a)
        if swapped
        else PairJudgement(swapped, score_a + place_bonus, score_b)
        for swapped in judging_orders(seed=1)
    ]


def test_a_pair_is_kept_only_when_the_mean_scores_differ_by_more_than_one() -> None:
    kept = build_pair("q", "good", "bad", _judged(8.0, 6.5))
    assert kept == PreferencePair("q", "good", "bad", 1.5)
    assert build_pair("q", "good", "bad", _judged(8.0, 7.0)) is None


def test_a_judge_that_always_prefers_the_first_place_makes_no_pair() -> None:
    assert build_pair("q", "a", "b", _judged(5.0, 5.0, place_bonus=9.0)) is None


_Scores = st.floats(0, 10)


@given(st.lists(st.tuples(_Scores, _Scores), min_size=4, max_size=4))
def test_exchanging_the_answers_exchanges_chosen_and_rejected(
    scores: list[tuple[float, float]],
) -> None:
    orders = judging_orders(seed=2)
    judged = [PairJudgement(order, *both) for order, both in zip(orders, scores, strict=True)]
    mirrored = [PairJudgement(not order, *both) for order, both in zip(orders, scores, strict=True)]
    assert build_pair("q", "a", "b", judged) == build_pair("q", "b", "a", mirrored)


@pytest.mark.parametrize("seed", range(8))
def test_both_orders_are_shown_equally_often(seed: int) -> None:
    assert sorted(judging_orders(seed)) == [False, False, True, True]


def test_the_order_of_the_judgements_is_random() -> None:
    assert len({tuple(judging_orders(seed)) for seed in range(32)}) == 6


def test_judgements_of_one_order_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="2 of 3 swapped"):
        build_pair("q", "a", "b", [PairJudgement(n < 2, 1.0, 0.0) for n in range(3)])
    with pytest.raises(ValueError, match="even number"):
        judging_orders(0, 3)


def _pair(chosen: int, rejected: int) -> PreferencePair:
    return PreferencePair("q", "c" * chosen, "r" * rejected, 2.0)


def test_the_longer_answer_is_chosen_as_often_as_the_shorter_one() -> None:
    pairs = [_pair(9, 1), _pair(3, 2), _pair(1, 5), _pair(4, 4), _pair(6, 3)]
    kept = balance_lengths(pairs)
    assert kept == [_pair(3, 2), _pair(1, 5), _pair(4, 4)]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_balancing_never_adds_and_always_balances(lengths: list[tuple[int, int]]) -> None:
    pairs = [_pair(chosen, rejected) for chosen, rejected in lengths]
    kept = balance_lengths(pairs)
    signs = [(pair.length_gap > 0) - (pair.length_gap < 0) for pair in kept]
    assert sum(signs) == 0
    longer = sum(pair.length_gap > 0 for pair in pairs)
    shorter = sum(pair.length_gap < 0 for pair in pairs)
    assert len(kept) == len(pairs) - abs(longer - shorter)
