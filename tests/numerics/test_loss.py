"""Every term of the objective against golden values, finite differences and the slow reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.loss import (
    Aggregation,
    clip_binds,
    clipped_surrogate,
    denominator,
    importance_ratio,
    k3_kl,
    policy_objective,
    token_weight,
    truncated_weight,
)
from tests.numerics import reference_grpo


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("clip", "ratio", "advantage", "expected"),
    [
        (0.2, 1.5, 1.0, 1.2),
        (0.2, 1.5, -1.0, -1.5),
        (0.2, 0.5, 1.0, 0.5),
        (0.2, 0.5, -1.0, -0.8),
        (10.0, 12.0, 1.0, 11.0),
        (10.0, 12.0, -1.0, -12.0),
        (10.0, 1e-6, -1.0, -1e-6),
    ],
)
def test_clip_term_has_its_golden_values(
    clip: float, ratio: float, advantage: float, expected: float
) -> None:
    found = clipped_surrogate(_tensor(ratio), _tensor(advantage), clip_low=clip, clip_high=clip)
    assert found.item() == pytest.approx(expected, abs=1e-12)
    assert reference_grpo.clip_term(ratio, advantage, clip, clip) == pytest.approx(expected)


def test_clip_binds_exactly_where_the_gradient_vanishes() -> None:
    ratio = _tensor(0.5, 0.5, 0.9, 1.1, 1.5, 1.5).requires_grad_()
    advantages = _tensor(1, -1, -1, 1, 1, -1)
    clipped_surrogate(ratio, advantages, clip_low=0.2, clip_high=0.28).sum().backward()
    bound = clip_binds(ratio.detach(), advantages, clip_low=0.2, clip_high=0.28)
    assert bound.tolist() == [False, True, False, False, True, False]
    assert ratio.grad is not None
    assert (ratio.grad == 0).tolist() == bound.tolist()


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (0.0, 0.0),
        (math.log(2), 0.306853),
        (-math.log(2), 0.193147),
        (0.1, 0.005170918),
        (-0.1, 0.004837418),
        (1.0, 0.718282),
        (-1.0, 0.367879),
    ],
)
def test_k3_has_its_golden_values(difference: float, expected: float) -> None:
    logprob = -2.0
    found = k3_kl(_tensor(logprob), _tensor(logprob + difference)).item()
    assert found == pytest.approx(expected, abs=5e-7)
    assert found >= 0
    assert reference_grpo.k3(logprob, logprob + difference) == pytest.approx(found, abs=1e-12)


def test_k3_averages_to_the_kl_divergence_by_enumeration() -> None:
    policy, reference = _tensor(0.5, 0.3, 0.2), _tensor(0.4, 0.4, 0.2)
    per_arm = k3_kl(policy.log(), reference.log())
    assert per_arm.tolist() == pytest.approx([0.023144, 0.045651, 0.0], abs=5e-7)
    assert (policy * per_arm).sum().item() == pytest.approx(0.0252671539, abs=1e-9)


@pytest.mark.parametrize("difference", [-0.7, 0.0, 0.4])
def test_the_gradient_of_k3_is_one_minus_the_ratio(difference: float) -> None:
    logprob = _tensor(-1.3).requires_grad_()
    k3_kl(logprob, _tensor(-1.3 + difference)).backward()
    assert logprob.grad is not None
    assert logprob.grad.item() == pytest.approx(1.0 - math.exp(difference), abs=1e-12)


@pytest.mark.parametrize(
    ("aggregation", "expected"), [("sequence", 0.0), ("token", -0.5), ("constant", -0.25)]
)
def test_aggregations_differ_as_their_papers_do(aggregation: Aggregation, expected: float) -> None:
    values = [[1.0] * 2, [-1.0] * 6]
    total = sum(token_weight(aggregation, len(tokens)) * sum(tokens) for tokens in values)
    lengths = [len(tokens) for tokens in values]
    assert total / denominator(aggregation, lengths, max_tokens=8) == pytest.approx(expected)
    assert reference_grpo.aggregate(values, aggregation, 8) == pytest.approx(expected)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_denominators_of_parts_add_up_to_the_whole(aggregation: Aggregation) -> None:
    lengths = [3, 1, 4, 1, 5]
    parts = sum(
        denominator(aggregation, part, max_tokens=7) for part in (lengths[:2], lengths[2:], [])
    )
    assert parts == denominator(aggregation, lengths, max_tokens=7)


def test_at_lag_zero_every_ratio_is_exactly_one() -> None:
    logprobs = _tensor(-0.1, -3.0, -12.0)
    terms = policy_objective(
        policy_logprobs=logprobs,
        behavior_logprobs=logprobs,
        advantages=_tensor(1, -1, 2),
        clip_low=0.2,
        clip_high=0.2,
        importance_cap=2.0,
    )
    assert terms.behavior_ratio.tolist() == [1.0, 1.0, 1.0]
    assert terms.objective.tolist() == [1.0, -1.0, 2.0]
    assert not terms.clipped.any()
    assert not terms.capped.any()


def test_the_default_gradient_is_truncated_importance_sampling() -> None:
    behavior = _tensor(-1.0, -1.0, -1.0, -1.0)
    policy = _tensor(-1.0, -0.5, 0.2, -3.0).requires_grad_()
    advantages = _tensor(1.5, -1.0, 1.0, 2.0)
    terms = policy_objective(
        policy_logprobs=policy,
        behavior_logprobs=behavior,
        advantages=advantages,
        clip_low=0.2,
        clip_high=0.2,
        importance_cap=2.0,
    )
    terms.objective.sum().backward()
    ratio = (policy.detach() - behavior).exp()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx((ratio.clamp(max=2.0) * advantages).tolist())
    assert terms.capped.tolist() == [False, False, True, False]


def test_without_the_correction_the_clip_acts_on_the_behavior_ratio() -> None:
    policy = _tensor(math.log(1.5), math.log(0.5), math.log(1.1)).requires_grad_()
    terms = policy_objective(
        policy_logprobs=policy,
        behavior_logprobs=_tensor(0.0, 0.0, 0.0),
        advantages=_tensor(1.0, -1.0, 1.0),
        clip_low=0.2,
        clip_high=0.2,
        importance_cap=0.0,
    )
    terms.objective.sum().backward()
    assert terms.objective.tolist() == pytest.approx([1.2, -0.8, 1.1])
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([0.0, 0.0, 1.1])
    assert terms.clipped.tolist() == [True, True, False]


def test_proximal_logprobs_make_the_decoupled_objective() -> None:
    behavior, proximal = _tensor(-1.0), _tensor(-1.2)
    policy = _tensor(-0.9).requires_grad_()
    terms = policy_objective(
        policy_logprobs=policy,
        behavior_logprobs=behavior,
        proximal_logprobs=proximal,
        advantages=_tensor(1.0),
        clip_low=0.2,
        clip_high=0.5,
        importance_cap=2.0,
    )
    expected = math.exp(-0.2) * math.exp(0.3)
    assert terms.objective.item() == pytest.approx(expected)
    terms.objective.backward()
    assert policy.grad is not None
    assert policy.grad.item() == pytest.approx(expected)


def test_ratios_stay_finite_however_far_policy_and_behavior_are_apart() -> None:
    ratio = importance_ratio(_tensor(0.0, -500.0), _tensor(-500.0, 0.0))
    assert ratio.tolist() == pytest.approx([math.exp(20.0), math.exp(-20.0)])
    capped = truncated_weight(_tensor(0.0), _tensor(-500.0), importance_cap=2.0)
    assert capped.item() == 2.0


@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_the_objective_equals_the_slow_reference(cap: float, beta: float) -> None:
    random = np.random.default_rng(7)
    behavior = -random.exponential(1.0, 200)
    policy = behavior + random.uniform(-2.0, 2.0, 200)  # from far below to far above cap and clip
    reference = policy + random.uniform(-1.0, 1.0, 200)
    advantages = random.normal(size=200)
    settings: dict[str, Any] = {"low": 0.2, "high": 0.28, "cap": cap, "beta": beta}
    expected = [
        reference_grpo.token_objective(p, b, a, reference=r, **settings)
        for p, b, a, r in zip(policy, behavior, advantages, reference, strict=True)
    ]
    terms = policy_objective(
        policy_logprobs=torch.from_numpy(policy),
        behavior_logprobs=torch.from_numpy(behavior),
        advantages=torch.from_numpy(advantages),
        reference_logprobs=torch.from_numpy(reference),
        kl_coefficient=beta,
        clip_low=0.2,
        clip_high=0.28,
        importance_cap=cap,
    )
    assert terms.objective.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_gradients_equal_finite_differences_on_two_tokens(cap: float) -> None:
    """For the default objective the weight is held fixed, as the estimator prescribes."""
    behavior, advantages = [-1.0, -0.4], [0.7, -1.3]
    policy = _tensor(-0.95, -0.5).requires_grad_()

    def objective(values: Tensor, proximal: Tensor) -> Tensor:
        return policy_objective(
            policy_logprobs=values,
            behavior_logprobs=_tensor(*behavior),
            proximal_logprobs=proximal,
            advantages=_tensor(*advantages),
            clip_low=0.2,
            clip_high=0.2,
            importance_cap=cap,
        ).objective.sum()

    proximal = policy.detach().clone()
    objective(policy, proximal).backward()
    for token in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[token] = 1e-6
        above = objective(policy.detach() + step, proximal)
        below = objective(policy.detach() - step, proximal)
        assert policy.grad is not None
        slope = (above - below).item() / 2e-6
        assert policy.grad[token].item() == pytest.approx(slope, abs=1e-6)
