"""The baseline of the packing benchmark is the method that it is named after, and the figures mean
what they say.
"""

from __future__ import annotations

import pytest

from common.types import RolloutId
from learner.batches.layout import ChunkLayout, MicrobatchLayout, PlannedRollout
from learner.studies.packing_study import (
    equal_karmarkar_karp,
    karmarkar_karp,
    packing_efficiency,
    rank_imbalance,
)


def _rollout(index: int, length: int) -> PlannedRollout:
    return PlannedRollout(
        rollout_id=RolloutId(group_id=0, index=index, attempt=0),
        num_prompt_tokens=1,
        num_completion_tokens=length - 1,
        advantage=0.0,
        lag=0,
    )


def _sums(costs: list[float], parts: list[list[int]]) -> list[float]:
    assert sorted(item for part in parts for item in part) == list(range(len(costs)))
    return sorted(sum(costs[item] for item in part) for part in parts)


@pytest.mark.parametrize(
    ("costs", "num_parts", "sums"),
    [
        ([8.0, 7.0, 6.0, 5.0, 4.0], 2, [14.0, 16.0]),  # the method's own example; the best is 15
        ([9.0, 7.0, 6.0, 5.0, 4.0, 3.0], 2, [17.0, 17.0]),
        ([8.0, 7.0, 6.0, 5.0, 4.0], 3, [8.0, 11.0, 11.0]),
    ],
)
def test_the_largest_differences_are_joined_first(
    costs: list[float], num_parts: int, sums: list[float]
) -> None:
    assert _sums(costs, karmarkar_karp(costs, num_parts)) == sums


def test_the_other_variant_gives_every_part_as_many_items() -> None:
    costs = [8.0, 7.0, 6.0, 5.0, 4.0, 1.0]
    parts = equal_karmarkar_karp(costs, 3)
    assert [len(part) for part in parts] == [2, 2, 2]
    assert _sums(costs, parts) == [9.0, 11.0, 11.0]


def test_padding_and_the_fullest_rank_are_counted() -> None:
    rollouts = [_rollout(0, 6), _rollout(1, 3), _rollout(2, 3)]
    ids = [rollout.rollout_id for rollout in rollouts]
    layout = ChunkLayout(
        group_ids=(0,),
        ranks=(
            (MicrobatchLayout(row_length=6, rows=((ids[0],), (ids[1],))),),
            (MicrobatchLayout(row_length=4, rows=((ids[2],),)),),
        ),
    )
    assert packing_efficiency(layout, rollouts) == 12 / 16
    assert rank_imbalance(layout, rollouts) == pytest.approx(9 * 2 / 12, rel=0.01)
