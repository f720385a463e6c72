"""GAE, the value loss and token rewards against golden values, double sums and slopes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.config import CriticConfig
from learner.objectives.critic import (
    adaptive_trace,
    advantages_and_returns,
    clipped_value_loss,
    explained_variance,
    generalized_advantages,
    token_rewards,
)
from tests.numerics import reference_objectives
from tests.numerics.reference_objectives import slope


@pytest.mark.parametrize(
    ("trace", "expected"), [(0.95, [0.76075, 0.485, 0.3]), (1.0, [0.8, 0.5, 0.3])]
)
def test_gae_has_its_golden_values(trace: float, expected: list[float]) -> None:
    rewards, values = np.array([0.0, 0.0, 1.0]), np.array([0.2, 0.5, 0.7])
    found = generalized_advantages(rewards, values, discount=1.0, trace=trace)
    assert found == pytest.approx(expected)


_TOKENS = st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=8)


@given(_TOKENS, st.floats(0, 1), st.floats(0, 1))
def test_gae_equals_the_double_sum_of_the_paper(
    tokens: list[tuple[float, float]], discount: float, trace: float
) -> None:
    rewards, values = np.array(tokens).T
    found = generalized_advantages(rewards, values, discount=discount, trace=trace)
    expected = reference_objectives.gae(rewards.tolist(), values.tolist(), discount, trace)
    assert found == pytest.approx(expected, abs=1e-9)


@given(_TOKENS)
def test_the_ends_of_the_trace_are_the_return_and_the_one_step_error(
    tokens: list[tuple[float, float]],
) -> None:
    rewards, values = np.array(tokens).T
    to_go = np.cumsum(rewards[::-1])[::-1]
    monte_carlo = generalized_advantages(rewards, values, discount=1.0, trace=1.0)
    assert monte_carlo == pytest.approx(to_go - values, abs=1e-9)
    one_step = generalized_advantages(rewards, values, discount=1.0, trace=0.0)
    assert one_step == pytest.approx(rewards + np.append(values[1:], 0.0) - values, abs=1e-9)


def test_the_outcome_is_paid_at_the_last_token_and_the_kl_at_each() -> None:
    logprobs, reference = np.array([-1.0, -2.0]), np.array([-1.5, -1.0])
    found = token_rewards(1.0, logprobs - reference, beta=0.1)
    assert found == pytest.approx([-0.05, 1.1])


def test_the_value_loss_has_no_gradient_where_its_clip_binds() -> None:
    values = torch.tensor([0.5, 1.5, -1.0, 0.1], dtype=torch.float64).requires_grad_()
    old, returns = torch.zeros(4, dtype=torch.float64), torch.tensor([1.0, 1.0, 1.0, 1.0])
    loss = clipped_value_loss(values, old, returns, clip=0.2)
    # 0.5 and 1.5 moved towards the return by more than 0.2: judged by 0.2, the worse of the two
    assert loss.tolist() == pytest.approx([0.32, 0.32, 2.0, 0.405])
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    assert gradient.tolist() == pytest.approx([0.0, 0.0, -2.0, -0.9])


@pytest.mark.parametrize("clip", [0.0, 0.2])
@pytest.mark.parametrize("value", [-1.0, 0.15, 0.6, 1.4])
def test_the_value_loss_has_the_slope_of_finite_differences(clip: float, value: float) -> None:
    def loss(at: float) -> float:
        tensor = torch.tensor([at], dtype=torch.float64)
        found = clipped_value_loss(tensor, torch.zeros(1), torch.tensor([0.5]), clip=clip)
        return found.item()

    probe = torch.tensor([value], dtype=torch.float64).requires_grad_()
    total = clipped_value_loss(probe, torch.zeros(1), torch.tensor([0.5]), clip=clip).sum()
    (gradient,) = torch.autograd.grad(total, probe)
    assert gradient.item() == pytest.approx(slope(loss, value), abs=1e-6)


def _explained(values: list[float], returns: list[float]) -> float:
    residuals = np.array(returns) - np.array(values)
    return explained_variance(
        count=len(returns),
        returns=sum(returns),
        returns_squared=float(np.square(returns).sum()),
        residuals=float(residuals.sum()),
        residuals_squared=float(np.square(residuals).sum()),
    )


def test_explained_variance_is_one_for_a_seer_and_zero_for_a_stone() -> None:
    returns = [0.0, 1.0, 2.0]
    assert _explained(returns, returns) == 1.0
    assert _explained([0.7] * 3, returns) == pytest.approx(0.0)
    assert _explained([0.0, -1.0, -2.0], returns) == pytest.approx(-3.0)
    assert _explained(returns, [1.0] * 3) == 0.0


@given(
    st.lists(_TOKENS, min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.3, 2.0]),
)
def test_each_completion_of_a_batch_has_the_advantages_and_returns_of_the_papers(
    rows: list[list[tuple[float, float]]],
    discount: float,
    trace: float,
    target: float,
    alpha: float,
) -> None:
    settings = CriticConfig(
        discount=discount, gae_lambda=trace, value_lambda=target, length_adaptive=alpha
    )
    rewards = [np.array([reward for reward, _ in row]) for row in rows]
    values = [np.array([value for _, value in row]) for row in rows]
    found = advantages_and_returns(rewards, values, settings)
    for row, (advantages, returns) in zip(rows, found, strict=True):
        expected, targets = reference_objectives.critic_signals(
            [reward for reward, _ in row],
            [value for _, value in row],
            gamma=discount,
            lam=max(0.0, 1 - 1 / (alpha * len(row))) if alpha else trace,
            value_lam=target,
        )
        assert advantages == pytest.approx(expected, abs=1e-9)
        assert returns == pytest.approx(targets, abs=1e-9)


def test_vapos_lambda_grows_with_the_answer_and_never_leaves_zero_to_one() -> None:
    found = adaptive_trace([1, 20, 100, 10_000], alpha=0.05)
    assert found == pytest.approx([0.0, 0.0, 0.8, 0.998])


def test_the_return_at_lambda_one_does_not_depend_on_the_values() -> None:
    rewards, seed = [np.array([0.0, -0.1, 1.0])], np.random.default_rng(0)
    for _ in range(3):
        ((_, returns),) = advantages_and_returns(rewards, [seed.normal(size=3)], CriticConfig())
        assert returns == pytest.approx([0.9, 0.9, 1.0])
