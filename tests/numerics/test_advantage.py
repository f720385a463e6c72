"""Group-relative advantages against hand-computed values and the paper's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.advantage import StdKind, group_advantages
from tests.numerics import reference_grpo


@pytest.mark.parametrize(
    ("std", "expected"),
    [
        ("population", [-0.707107, -0.707107, 1.414214]),
        ("sample", [-0.577350, -0.577350, 1.154701]),
    ],
)
def test_rewards_1_1_2_give_the_worked_example(std: StdKind, expected: list[float]) -> None:
    assert group_advantages([1, 1, 2], std=std, epsilon=0.0) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(
    ("size", "successes", "plus", "minus"),
    [(16, 4, 1.732051, -0.577350), (16, 1, 3.872983, -0.258199)],
)
def test_binary_rewards_follow_the_closed_form(
    size: int, successes: int, plus: float, minus: float
) -> None:
    rewards = [1.0] * successes + [0.0] * (size - successes)
    advantages = group_advantages(rewards, std="population", epsilon=0.0)
    assert advantages[0] == pytest.approx(math.sqrt((size - successes) / successes))
    assert advantages[0] == pytest.approx(plus, abs=5e-7)
    assert advantages[-1] == pytest.approx(minus, abs=5e-7)


@pytest.mark.parametrize(
    ("std", "right", "wrong"),
    [
        ("population", 1.7320508, -0.5773503),
        ("sample", 1.5, -0.5),
        ("none", 0.75, -0.25),
    ],
)
def test_one_right_answer_of_four_and_its_mirror(std: StdKind, right: float, wrong: float) -> None:
    one_right = group_advantages([1, 0, 0, 0], std=std, epsilon=0.0)
    one_wrong = group_advantages([1, 1, 1, 0], std=std, epsilon=0.0)
    assert one_right == pytest.approx([right, wrong, wrong, wrong], abs=5e-8)
    assert one_wrong == pytest.approx([-wrong, -wrong, -wrong, -right], abs=5e-8)


@pytest.mark.parametrize("rewards", [[0, 0, 0, 0], [1, 1, 1, 1], [0.1, 0.1, 0.1], [3.0], []])
@pytest.mark.parametrize("std", ["population", "sample", "none"])
def test_a_group_of_equal_rewards_has_advantage_exactly_zero(
    rewards: list[float], std: StdKind
) -> None:
    assert group_advantages(rewards, std=std, epsilon=0.0).tolist() == [0.0] * len(rewards)


@pytest.mark.parametrize(
    ("std", "epsilon", "third"),
    [
        ("sample", 1e-4, 1.154501),
        ("sample", 1e-6, 1.154698),
        ("sample", 0.0, 1.154701),
        ("population", 1e-4, 1.413914),
        ("population", 1e-6, 1.414211),
        ("population", 0.0, 1.414214),
    ],
)
def test_epsilon_is_added_to_the_divisor(std: StdKind, epsilon: float, third: float) -> None:
    advantages = group_advantages([1, 1, 2], std=std, epsilon=epsilon)
    assert advantages[2] == pytest.approx(third, abs=1e-6)


_REWARDS = st.lists(st.integers(-20, 20), min_size=2, max_size=16)
_STDS = st.sampled_from(["population", "sample", "none"])


@given(_REWARDS, _STDS)
def test_advantages_equal_the_papers_formula(rewards: list[int], std: StdKind) -> None:
    expected = reference_grpo.advantages(rewards, std, 1e-6)
    assert group_advantages(rewards, std=std, epsilon=1e-6) == pytest.approx(expected, abs=1e-12)


@given(_REWARDS, _STDS, st.integers(-100, 100))
def test_advantages_sum_to_zero_and_ignore_a_shift(
    rewards: list[int], std: StdKind, shift: int
) -> None:
    advantages = group_advantages(rewards, std=std, epsilon=1e-6)
    shifted = group_advantages([reward + shift for reward in rewards], std=std, epsilon=1e-6)
    assert advantages.sum() == pytest.approx(0.0, abs=1e-9)
    assert shifted == pytest.approx(advantages, abs=1e-9)


@given(_REWARDS)
def test_permuting_the_group_permutes_the_advantages(rewards: list[int]) -> None:
    order = np.random.default_rng(len(rewards)).permutation(len(rewards))
    advantages = group_advantages(rewards, std="sample", epsilon=0.0)
    permuted = group_advantages(np.array(rewards)[order], std="sample", epsilon=0.0)
    assert permuted == pytest.approx(advantages[order], abs=1e-12)


@given(st.lists(st.integers(0, 1), min_size=2, max_size=16).filter(lambda r: len(set(r)) == 2))
def test_squares_sum_to_g_or_g_minus_one(rewards: list[int]) -> None:
    population = group_advantages(rewards, std="population", epsilon=0.0)
    sample = group_advantages(rewards, std="sample", epsilon=0.0)
    assert (population**2).sum() == pytest.approx(len(rewards))
    assert (sample**2).sum() == pytest.approx(len(rewards) - 1)


def test_two_uniform_groups_stay_zero_whatever_the_batch_around_them() -> None:
    advantages = [group_advantages(group, std="sample", epsilon=1e-6) for group in ([1, 1], [0, 0])]
    assert np.concatenate(advantages).tolist() == [0.0, 0.0, 0.0, 0.0]
