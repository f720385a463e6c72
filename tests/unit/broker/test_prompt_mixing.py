"""Shares of prompt sets: exact to less than one prompt, after every draw."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.events import SetWeight
from broker.prompts.mixing import next_set


def _mix(*weights: float) -> tuple[SetWeight, ...]:
    return tuple(SetWeight(name=f"s{n}", weight=weight) for n, weight in enumerate(weights))


def _draw(mix: tuple[SetWeight, ...], number: int) -> list[str]:
    counts = {item.name: 0 for item in mix}
    drawn = []
    for _ in range(number):
        drawn.append(next_set(mix, counts))
        counts[drawn[-1]] += 1
    return drawn


def _check_shares(weights: list[float], num_draws: int) -> None:
    mix = _mix(*weights)
    exact = {item.name: Fraction(repr(item.weight)) for item in mix}
    total = sum(exact.values())
    counts: Counter[str] = Counter()
    for number, name in enumerate(_draw(mix, num_draws), start=1):
        counts[name] += 1
        for item, weight in exact.items():
            assert abs(counts[item] - number * weight / total) < 1


_weights = st.lists(
    st.one_of(
        st.integers(1, 1000).map(float),
        st.floats(1e-3, 1e3, allow_nan=False),
        st.sampled_from([0.1, 0.2, 0.7, 1 / 3]),
    ),
    min_size=1,
    max_size=32,
)


@given(weights=_weights)
@settings(max_examples=150)
def test_every_share_is_less_than_one_prompt_from_its_weight_after_every_draw(
    weights: list[float],
) -> None:
    _check_shares(weights, 200)


@pytest.mark.parametrize("weights", [(1, 1, 1, 20, 20), (1,) * 7 + (20, 20), (1,) * 17 + (20, 20)])
def test_many_light_sets_beside_heavy_ones_get_their_share(weights: tuple[int, ...]) -> None:
    """Drawing where the deficit is largest leaves a heavy set more than a prompt behind here."""
    _check_shares([float(weight) for weight in weights], sum(weights))


@pytest.mark.parametrize(
    "weights", [(0.1, 0.2, 0.7), (1e-9, 2e-9, 7e-9), (1e9, 2e9, 7e9), (0.3, 0.6, 2.1)]
)
def test_only_the_proportions_of_weights_matter_and_a_decimal_is_meant_exactly(
    weights: tuple[float, ...],
) -> None:
    plain = _draw(_mix(1.0, 2.0, 7.0), 100)
    assert Counter(plain[:10]) == {"s0": 1, "s1": 2, "s2": 7}
    assert _draw(_mix(*weights), 100) == plain


def test_one_set_is_always_drawn_from() -> None:
    assert _draw(_mix(0.3), 5) == ["s0"] * 5
