"""Advantages against hand-computed values and the papers' formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import LossConfig
from learner.objectives.advantages import (
    StdKind,
    batch_advantages,
    leave_one_out_advantages,
    normalized_advantages,
    planned_advantages,
)
from tests.numerics import reference_grpo, reference_objectives


@pytest.mark.parametrize(
    ("std", "expected"),
    [
        ("population", [-0.707107, -0.707107, 1.414214]),
        ("sample", [-0.577350, -0.577350, 1.154701]),
    ],
)
def test_rewards_1_1_2_give_the_worked_example(std: StdKind, expected: list[float]) -> None:
    assert normalized_advantages([1, 1, 2], std=std, epsilon=0.0) == pytest.approx(
        expected, abs=5e-7
    )


@pytest.mark.parametrize(
    ("size", "successes", "plus", "minus"),
    [(16, 4, 1.732051, -0.577350), (16, 1, 3.872983, -0.258199)],
)
def test_binary_rewards_follow_the_closed_form(
    size: int, successes: int, plus: float, minus: float
) -> None:
    rewards = [1.0] * successes + [0.0] * (size - successes)
    advantages = normalized_advantages(rewards, std="population", epsilon=0.0)
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
    one_right = normalized_advantages([1, 0, 0, 0], std=std, epsilon=0.0)
    one_wrong = normalized_advantages([1, 1, 1, 0], std=std, epsilon=0.0)
    assert one_right == pytest.approx([right, wrong, wrong, wrong], abs=5e-8)
    assert one_wrong == pytest.approx([-wrong, -wrong, -wrong, -right], abs=5e-8)


@pytest.mark.parametrize("rewards", [[0, 0, 0, 0], [1, 1, 1, 1], [0.1, 0.1, 0.1], [3.0], []])
@pytest.mark.parametrize("std", ["population", "sample", "none"])
def test_a_group_of_equal_rewards_has_advantage_exactly_zero(
    rewards: list[float], std: StdKind
) -> None:
    assert normalized_advantages(rewards, std=std, epsilon=0.0).tolist() == [0.0] * len(rewards)


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
    advantages = normalized_advantages([1, 1, 2], std=std, epsilon=epsilon)
    assert advantages[2] == pytest.approx(third, abs=1e-6)


_REWARDS = st.lists(st.integers(-20, 20), min_size=2, max_size=16)
_STDS = st.sampled_from(["population", "sample", "none"])


@given(_REWARDS, _STDS)
def test_advantages_equal_the_papers_formula(rewards: list[int], std: StdKind) -> None:
    expected = reference_grpo.advantages(rewards, std, 1e-6)
    assert normalized_advantages(rewards, std=std, epsilon=1e-6) == pytest.approx(
        expected, abs=1e-12
    )


@given(_REWARDS, _STDS, st.integers(-100, 100))
def test_advantages_sum_to_zero_and_ignore_a_shift(
    rewards: list[int], std: StdKind, shift: int
) -> None:
    advantages = normalized_advantages(rewards, std=std, epsilon=1e-6)
    shifted = normalized_advantages([reward + shift for reward in rewards], std=std, epsilon=1e-6)
    assert advantages.sum() == pytest.approx(0.0, abs=1e-9)
    assert shifted == pytest.approx(advantages, abs=1e-9)


@given(_REWARDS)
def test_permuting_the_group_permutes_the_advantages(rewards: list[int]) -> None:
    order = np.random.default_rng(len(rewards)).permutation(len(rewards))
    advantages = normalized_advantages(rewards, std="sample", epsilon=0.0)
    permuted = normalized_advantages(np.array(rewards)[order], std="sample", epsilon=0.0)
    assert permuted == pytest.approx(advantages[order], abs=1e-12)


@given(st.lists(st.integers(0, 1), min_size=2, max_size=16).filter(lambda r: len(set(r)) == 2))
def test_squares_sum_to_g_or_g_minus_one(rewards: list[int]) -> None:
    population = normalized_advantages(rewards, std="population", epsilon=0.0)
    sample = normalized_advantages(rewards, std="sample", epsilon=0.0)
    assert (population**2).sum() == pytest.approx(len(rewards))
    assert (sample**2).sum() == pytest.approx(len(rewards) - 1)


def test_two_uniform_groups_stay_zero_whatever_the_batch_around_them() -> None:
    advantages = [
        normalized_advantages(group, std="sample", epsilon=1e-6) for group in ([1, 1], [0, 0])
    ]
    assert np.concatenate(advantages).tolist() == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1, 0, 0, 0], [1.0, -1 / 3, -1 / 3, -1 / 3]),
        ([1, 1, 2], [-0.5, -0.5, 1.0]),
        ([3], [0.0]),
        ([2, 2], [0.0, 0.0]),
        ([], []),
    ],
)
def test_leave_one_out_subtracts_the_mean_of_the_others(
    rewards: list[float], expected: list[float]
) -> None:
    assert leave_one_out_advantages(rewards) == pytest.approx(expected)


@given(_REWARDS)
def test_leave_one_out_sums_to_zero_and_is_the_centred_reward_times_g_over_g_minus_one(
    rewards: list[int],
) -> None:
    size = len(rewards)
    found = leave_one_out_advantages(rewards)
    assert found.sum() == pytest.approx(0.0, abs=1e-9)
    assert found == pytest.approx(reference_objectives.leave_one_out(rewards), abs=1e-12)
    centred = normalized_advantages(rewards, std="none", epsilon=0.0)
    assert found == pytest.approx(centred * size / (size - 1), abs=1e-9)


@pytest.mark.parametrize("size", [2, 3])
def test_the_mean_leave_one_out_estimate_is_the_gradient_of_the_expected_reward(size: int) -> None:
    """By enumeration of every group of one coin: unbiased, which r - mean(r) is not."""
    p, reward = 0.3, (0.0, 1.0)  # the coin shows 1 with p; d E[r] / d logit = p (1 - p)
    estimates = {"loo": 0.0, "mean": 0.0}
    for outcomes in itertools.product((0, 1), repeat=size):
        chance = math.prod(p if side else 1 - p for side in outcomes)
        rewards = [reward[side] for side in outcomes]
        score = [side - p for side in outcomes]  # d log pi / d logit
        for name, values in (
            ("loo", leave_one_out_advantages(rewards)),
            ("mean", normalized_advantages(rewards, std="none", epsilon=0.0)),
        ):
            estimates[name] += chance * float(np.mean(values * score))
    assert estimates["loo"] == pytest.approx(p * (1 - p))
    assert estimates["mean"] == pytest.approx(p * (1 - p) * (size - 1) / size)


@pytest.mark.parametrize("std", ["population", "sample", "none"])
def test_reinforce_plus_plus_normalises_over_all_groups_of_a_batch(std: StdKind) -> None:
    settings = LossConfig(
        baseline="batch-mean", advantage_over="batch", advantage_std=std, advantage_epsilon=0.0
    )
    groups = [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    planned = [a for group in groups for a in planned_advantages(group, settings)]
    assert planned == [1.0, 1.0, 0.0, 0.0, 1.0, 0.0], "a group alone leaves the reward as it is"
    divisor = {"population": 0.5, "sample": math.sqrt(0.3), "none": 1.0}[std]
    expected = [0.5 / divisor, 0.5 / divisor, -0.5 / divisor]
    assert batch_advantages(planned, settings)[[0, 1, 5]] == pytest.approx(expected)


def test_with_a_group_baseline_only_the_scale_is_the_batchs() -> None:
    settings = LossConfig(advantage_over="batch", advantage_std="population", advantage_epsilon=0)
    planned = [a for group in ([1.0, 1.0], [3.0, 1.0]) for a in planned_advantages(group, settings)]
    assert planned == [0.0, 0.0, 1.0, -1.0]
    divisor = math.sqrt(0.5)
    assert batch_advantages(planned, settings) == pytest.approx([0, 0, 1 / divisor, -1 / divisor])


def test_leave_one_out_may_be_scaled_by_the_group() -> None:
    settings = LossConfig(
        baseline="leave-one-out", advantage_std="population", advantage_epsilon=0.0
    )
    scale = math.sqrt(3) / 4  # of (1, 0, 0, 0)
    expected = [1.0 / scale, -1 / 3 / scale]
    assert planned_advantages([1, 0, 0, 0], settings)[:2] == pytest.approx(expected)


def test_the_default_plan_is_group_normalised_by_the_sample_deviation() -> None:
    assert planned_advantages([1, 1, 2], LossConfig())[2] == pytest.approx(1.154698, abs=1e-6)
