"""Which store a group goes to."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from common.payloads.placement import ranked_stores

names_of_stores = st.sets(st.text("abcdef-0123456789", min_size=1, max_size=8), min_size=2)


@given(st.integers(0, 1 << 40), names_of_stores)
def test_without_its_store_a_group_goes_to_its_next_choice_and_no_other_group_moves(
    group_id: int, names: set[str]
) -> None:
    ranked = ranked_stores(group_id, names)
    assert sorted(ranked) == sorted(names)
    for gone in names:
        assert ranked_stores(group_id, names - {gone}) == [name for name in ranked if name != gone]


def test_groups_spread_evenly_over_stores() -> None:
    names = [f"store-{number}" for number in range(4)]
    first = Counter(ranked_stores(group_id, names)[0] for group_id in range(4000))
    assert set(first) == set(names)
    assert all(850 < number < 1150 for number in first.values()), first
