"""The planner loses nothing, keeps the budget and shares what is common."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.verification.models.batching import (
    Tree,
    common_prefix_length,
    plan_batches,
    share_prefixes,
    split_tree,
)
from common.arrays import Int32Array

_Sequences = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(0, 1), min_size=1, max_size=40)), max_size=30
)


def _arrays(drawn: list[tuple[int, list[int]]]) -> tuple[list[Int32Array], list[int]]:
    return [np.array(ids, dtype=np.int32) for _, ids in drawn], [key for key, _ in drawn]


@given(_Sequences, st.integers(1, 64), st.integers(1, 64))
def test_every_sequence_is_in_one_batch_and_only_a_lone_long_one_breaks_the_budget(
    drawn: list[tuple[int, list[int]]], budget: int, row: int
) -> None:
    sequences, keys = _arrays(drawn)
    batches = plan_batches(
        sequences, keys, budget_tokens=budget, max_row_tokens=row, min_shared_tokens=1
    )
    members = [member for batch in batches for member in batch.members]
    assert sorted(members) == list(range(len(sequences)))
    for batch in batches:
        assert batch.num_places <= budget or len(batch.members) == 1
        assert batch.row_length <= row or all(
            len(tree.members) == 1 for trees in batch.rows for tree in trees
        )
        assert all(sum(tree.num_tokens for tree in trees) <= batch.row_length
                   for trees in batch.rows)  # fmt: skip


@given(_Sequences)
def test_members_of_a_tree_begin_alike_and_each_has_a_token_of_its_own(
    drawn: list[tuple[int, list[int]]],
) -> None:
    sequences, keys = _arrays(drawn)
    for tree in share_prefixes(sequences, keys, min_shared_tokens=1):
        first = sequences[tree.members[0]]
        for member, length in zip(tree.members, tree.lengths, strict=True):
            assert length == len(sequences[member]) > tree.prefix_length
            assert keys[member] == keys[tree.members[0]]
            shared = slice(tree.prefix_length)
            assert sequences[member][shared].tolist() == first[shared].tolist()


def test_a_group_pays_for_its_prompt_once_and_a_stranger_shares_nothing() -> None:
    prompt = np.arange(20, dtype=np.int32)
    answers = [np.append(prompt, np.full(5, 50 + n, dtype=np.int32)) for n in range(4)]
    (batch,) = plan_batches([*answers, answers[0]], ["a"] * 4 + ["b"], budget_tokens=100)
    assert batch.num_tokens == (20 + 4 * 5) + 25


def test_sequences_of_one_batch_are_of_like_lengths() -> None:
    lengths = [3, 40, 4, 39, 5, 38]
    sequences = [np.full(length, 1, dtype=np.int32) for length in lengths]
    batches = plan_batches(sequences, list(range(6)), budget_tokens=120)
    assert [sorted(batch.members) for batch in batches] == [[1, 3, 5], [0, 2, 4]]


@pytest.mark.parametrize(
    ("left", "right", "shared"),
    [([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2], 1), ([1, 2], [1, 2, 3], 1), ([1], [1], 0)],
)
def test_the_common_start_leaves_every_sequence_its_last_token(
    left: list[int], right: list[int], shared: int
) -> None:
    arrays = [np.array(ids, dtype=np.int32) for ids in (left, right)]
    assert common_prefix_length(arrays) == shared


def test_a_large_tree_is_cut_into_pieces_that_each_begin_with_the_prefix() -> None:
    tree = Tree(10, (0, 1, 2, 3, 4), (14, 14, 14, 14, 30))
    assert list(split_tree(tree, 18)) == [
        Tree(10, (0, 1), (14, 14)),
        Tree(10, (2, 3), (14, 14)),
        Tree(0, (4,), (30,)),
    ]
