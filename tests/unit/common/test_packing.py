"""Rows are filled best-fit: nothing is lost, the budget holds, a long sequence stands alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.packing import PackedRows, pack_rows

_Lengths = st.lists(st.integers(1, 50), max_size=40).map(lambda drawn: sorted(drawn)[::-1])


@given(_Lengths, st.integers(0, 40), st.integers(1, 100))
def test_every_sequence_has_one_place_within_the_budget(
    lengths: list[int], row_tokens: int, budget: int
) -> None:
    batches = list(pack_rows(lengths, row_tokens=row_tokens, budget_tokens=budget))
    placed = [item for batch in batches for row in batch.rows for item in row]
    assert sorted(placed) == list(range(len(lengths)))
    for batch in batches:
        assert batch.num_places <= budget or len(batch.rows) == 1
        assert batch.row_length == max(row_tokens, lengths[batch.rows[0][0]])
        assert all(sum(lengths[item] for item in row) <= batch.row_length for row in batch.rows)


def test_a_sequence_goes_into_the_fullest_row_that_has_room() -> None:
    (batch,) = pack_rows([10, 7, 6, 3], row_tokens=0, budget_tokens=30)
    assert batch == PackedRows(10, ((0,), (1, 3), (2,)))


@given(_Lengths, st.integers(1, 100), st.sampled_from([0.0, 0.01, 0.5]))
def test_rows_of_any_length_lose_nothing_and_keep_the_budget(
    lengths: list[int], budget: int, hidden: float
) -> None:
    batches = list(
        pack_rows(lengths, row_tokens=0, budget_tokens=budget, hidden_attention_ratio=hidden)
    )
    placed = [item for batch in batches for row in batch.rows for item in row]
    assert sorted(placed) == list(range(len(lengths)))
    for batch in batches:
        fills = [sum(lengths[item] for item in row) for row in batch.rows]
        assert batch.num_places <= budget or len(fills) == 1
        assert batch.row_length == max(fills)


def test_where_hidden_places_cost_nothing_no_place_stays_empty() -> None:
    (batch,) = pack_rows([10, 7, 6, 3], row_tokens=0, budget_tokens=30, hidden_attention_ratio=0.0)
    assert batch == PackedRows(26, ((0, 1, 2, 3),))


def test_a_longer_row_must_save_more_padding_than_it_costs_attention() -> None:
    """Rows of 10 need 30 places for 26 tokens, one of 26 needs 26, and
    30 (1 + 10 r) = 26 (1 + 26 r) at r = 0.0106.
    """
    shapes = {
        ratio: next(
            pack_rows([10, 7, 6, 3], row_tokens=0, budget_tokens=30, hidden_attention_ratio=ratio)
        ).row_length
        for ratio in (0.010, 0.011)
    }
    assert shapes == {0.010: 26, 0.011: 10}
