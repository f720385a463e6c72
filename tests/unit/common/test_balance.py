"""Work is divided so that nobody waits long for the most loaded worker."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.balance import _swap_in_pairs, imbalance, sequence_cost, split_evenly

_ATTENTION_RATIO = 28 * 1024 / 6e8
"""Layers times width over parameters of a model of 0.6 billion."""


def _lengths(seed: int, sigma: float, number: int = 512) -> list[int]:
    source = random.Random(seed)
    drawn = (math.exp(source.gauss(8.0, sigma)) for _ in range(number))
    return [min(32_768, 64 + int(length)) for length in drawn]


def _smallest_peak(costs: Sequence[int], num_parts: int) -> int:
    """By trying every assignment."""
    return min(
        max(
            sum(cost for cost, part in zip(costs, chosen, strict=True) if part == wanted)
            for wanted in range(num_parts)
        )
        for chosen in itertools.product(range(num_parts), repeat=len(costs))
    )


@given(st.lists(st.integers(1, 1000), max_size=60), st.integers(1, 9))
def test_every_item_is_in_exactly_one_part(costs: list[int], num_parts: int) -> None:
    parts = split_evenly(costs, num_parts)
    assert len(parts) == num_parts
    assert sorted(item for part in parts for item in part) == list(range(len(costs)))


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 9))
def test_the_fullest_part_is_within_a_third_of_what_any_division_must_have(
    costs: list[int], num_parts: int
) -> None:
    parts = split_evenly(costs, num_parts)
    ranked = sorted(costs, reverse=True)
    pair = sum(ranked[num_parts - 1 : num_parts + 1]) if len(costs) > num_parts else 0
    unavoidable = max(sum(costs) / num_parts, ranked[0], pair)
    peak = max(sum(costs[item] for item in part) for part in parts)
    assert peak <= 4 / 3 * unavoidable + 1e-9


@given(st.lists(st.integers(1, 50), min_size=1, max_size=7), st.integers(2, 3))
def test_small_problems_are_close_to_the_best_division(costs: list[int], num_parts: int) -> None:
    parts = split_evenly(costs, num_parts)
    peak = max(sum(costs[item] for item in part) for part in parts)
    assert peak <= 1.2 * _smallest_peak(costs, num_parts)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), st.integers(2, 9))
def test_no_move_or_swap_relieves_the_fullest_part_where_it_is_not_nearly_the_mean(
    costs: list[int], num_parts: int
) -> None:
    parts = split_evenly(costs, num_parts)
    sums = [sum(costs[item] for item in part) for part in parts]
    fullest = max(range(num_parts), key=sums.__getitem__)
    if sums[fullest] <= 1.005 * max(max(costs), sum(costs) / num_parts):
        return
    for number, part in enumerate(parts):
        if number != fullest:
            for given_up in parts[fullest]:
                for returned in (0, *(costs[item] for item in part)):
                    shift = costs[given_up] - returned
                    assert max(sums[fullest] - shift, sums[number] + shift) >= sums[fullest]


def test_full_and_empty_parts_even_out_in_pairs() -> None:
    """15 and 5 become 9 and 11 by a swap of 9 and 3; 11 and 7 become 8 and 10 by a move of 3."""
    padded = np.array([9.0, 6.0, 3.0, 2.0, 8.0, 3.0, 4.0, 3.0, 0.0])
    items = np.array([[0, 1, 8], [2, 3, 8], [4, 5, 8], [6, 7, 8]])
    assert _swap_in_pairs(items, padded, padded[items].sum(axis=1))
    assert sorted(padded[items].sum(axis=1)) == [8.0, 9.0, 10.0, 11.0]


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.2])
@pytest.mark.parametrize("seed", range(5))
def test_512_rollouts_of_any_spread_load_64_ranks_within_two_per_cent_of_the_bound(
    sigma: float, seed: int
) -> None:
    costs = [sequence_cost(length, _ATTENTION_RATIO) for length in _lengths(seed, sigma)]
    bound = max(1.0, max(costs) * 64 / sum(costs))
    assert imbalance(costs, split_evenly(costs, 64)) <= 1.02 * bound


@pytest.mark.parametrize(
    ("costs", "num_parts", "best"), [([3, 3, 2, 2, 2], 2, 6), ([5, 5, 4, 4, 3, 3, 3], 3, 9)]
)
def test_swaps_find_what_taking_the_longest_first_misses(
    costs: list[int], num_parts: int, best: int
) -> None:
    parts = split_evenly(costs, num_parts)
    assert [sum(costs[item] for item in part) for part in parts] == [best] * num_parts


def test_the_fullest_part_may_be_relieved_by_another_than_the_emptiest() -> None:
    """11 + 3 + 5 + 6 + 6 + 4 in three parts: pairs of fullest and emptiest end at 13."""
    costs = [11, 5, 6, 3, 4, 6]
    assert max(sum(costs[item] for item in part) for part in split_evenly(costs, 3)) == 12


def test_attention_makes_one_long_sequence_cost_more_than_its_tokens_cut_short() -> None:
    assert sequence_cost(4096, 0.0) == 4 * sequence_cost(1024, 0.0)
    assert sequence_cost(4096, 1 / 4096) == 2 * 4096
    assert sequence_cost(4096, _ATTENTION_RATIO) > 4 * sequence_cost(1024, _ATTENTION_RATIO)
