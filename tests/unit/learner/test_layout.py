"""Packing loses nothing, fits everything, and is the same every time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.types import RolloutId
from learner.batches.layout import (
    MicrobatchLayout,
    PlannedRollout,
    plan_chunk,
    plan_microbatches,
    split_over_ranks,
)


def _rollout(number: int, length: int, group_size: int = 4) -> PlannedRollout:
    return PlannedRollout(
        rollout_id=RolloutId(group_id=number // group_size, index=number % group_size, attempt=0),
        num_prompt_tokens=1,
        num_completion_tokens=length - 1,
        advantage=0.0,
        lag=0,
    )


def _rollouts(lengths: list[int]) -> list[PlannedRollout]:
    return [_rollout(number, length) for number, length in enumerate(lengths)]


def _lengths(microbatch: MicrobatchLayout, rollouts: list[PlannedRollout]) -> list[list[int]]:
    known = {rollout.rollout_id: rollout.length for rollout in rollouts}
    return [[known[item] for item in row] for row in microbatch.rows]


_LENGTHS = st.lists(st.integers(2, 90), min_size=1, max_size=60)


@given(_LENGTHS, st.integers(1, 400), st.integers(0, 120), st.integers(1, 4))
def test_every_rollout_stands_in_exactly_one_row_that_has_room_for_it(
    lengths: list[int], budget: int, row_tokens: int, num_ranks: int
) -> None:
    rollouts = _rollouts(lengths)
    layout = plan_chunk(
        [0], rollouts, num_ranks=num_ranks, row_tokens=row_tokens, microbatch_tokens=budget
    )
    microbatches = [microbatch for rank in layout.ranks for microbatch in rank]
    placed = [item for microbatch in microbatches for row in microbatch.rows for item in row]
    assert sorted(placed) == sorted(rollout.rollout_id for rollout in rollouts)
    for microbatch in microbatches:
        for row in _lengths(microbatch, rollouts):
            assert sum(row) <= microbatch.row_length
        alone = len(microbatch.rows) == 1
        assert alone or microbatch.row_length * len(microbatch.rows) <= budget


@given(_LENGTHS, st.integers(1, 400))
def test_the_order_of_arrival_does_not_change_the_layout(lengths: list[int], budget: int) -> None:
    rollouts = _rollouts(lengths)
    forwards = plan_microbatches(rollouts, row_tokens=0, microbatch_tokens=budget)
    backwards = plan_microbatches(rollouts[::-1], row_tokens=0, microbatch_tokens=budget)
    assert forwards == backwards


def test_rows_are_as_long_as_the_longest_document_and_holes_are_filled() -> None:
    rollouts = _rollouts([10, 7, 3, 5, 5, 4])
    (microbatch,) = plan_microbatches(rollouts, row_tokens=0, microbatch_tokens=40)
    assert microbatch.row_length == 10
    assert _lengths(microbatch, rollouts) == [[10], [7, 3], [5, 5], [4]]


def test_what_does_not_fit_the_budget_opens_another_microbatch() -> None:
    rollouts = _rollouts([8, 8, 8, 2])
    first, second = plan_microbatches(rollouts, row_tokens=0, microbatch_tokens=16)
    assert _lengths(first, rollouts) == [[8], [8]]
    assert _lengths(second, rollouts) == [[8]] or _lengths(second, rollouts) == [[8], [2]]
    assert second.row_length == 8


def test_a_document_longer_than_row_and_budget_still_gets_a_row() -> None:
    rollouts = _rollouts([50])
    (microbatch,) = plan_microbatches(rollouts, row_tokens=16, microbatch_tokens=20)
    assert (microbatch.row_length, len(microbatch.rows)) == (50, 1)


def test_ranks_get_nearly_equal_numbers_of_tokens() -> None:
    rollouts = _rollouts([9, 8, 7, 6, 5, 4])
    shares = split_over_ranks(rollouts, 2)
    assert [sum(rollout.length for rollout in share) for share in shares] == [20, 19]


def test_a_rank_without_work_leaves_the_others_microbatches_to_count() -> None:
    layout = plan_chunk(
        [0], _rollouts([5, 5, 5]), num_ranks=4, row_tokens=0, microbatch_tokens=1000
    )
    assert [len(rank) for rank in layout.ranks] == [1, 1, 1, 0]
    assert layout.num_microbatches == 1


def test_a_cut_group_leaves_no_row_and_no_empty_microbatch() -> None:
    rollouts = _rollouts([6] * 8)  # groups 0 and 1
    layout = plan_chunk([0, 1], rollouts, num_ranks=2, row_tokens=0, microbatch_tokens=6)
    cut = layout.without([1])
    kept = [item for rank in cut.ranks for batch in rank for row in batch.rows for item in row]
    assert cut.group_ids == (0,)
    assert {item.group_id for item in kept} == {0}
    assert len(kept) == 4
    assert layout.without([]) is layout
