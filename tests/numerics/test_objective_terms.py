"""Every term of the objective by itself: golden values, limits and gradients."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learner.objectives.aggregation import Aggregation, denominator, token_weight
from learner.objectives.corrections import (
    Correction,
    divergent_sequences,
    interpolated_logprobs,
    off_policy_weight,
)
from learner.objectives.kl import k1_kl, k2_kl, k3_kl, kl_return_to_go
from learner.objectives.ratios import importance_ratio, sequence_mean_ratio, sequence_ratio
from learner.objectives.segments import sequence_mean, sum_to_go
from learner.objectives.surrogates import (
    cispo_surrogate,
    clip_binds,
    clipped_surrogate,
    dual_clipped,
    reinforce_surrogate,
)
from tests.numerics import reference_grpo


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _gradient(values: Tensor, total: Tensor) -> list[float]:
    (gradient,) = torch.autograd.grad(total, values)
    found: list[float] = gradient.tolist()
    return found


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
    ratio = _tensor(0.5, 0.5, 0.75, 1.25, 1.5, 1.5).requires_grad_()
    advantages = _tensor(1, -1, -1, 1, 1, -1)
    total = clipped_surrogate(ratio, advantages, clip_low=0.2, clip_high=0.28).sum()
    bound = clip_binds(ratio.detach(), advantages, clip_low=0.2, clip_high=0.28)
    assert bound.tolist() == [False, True, True, False, True, False]
    assert [slope == 0 for slope in _gradient(ratio, total)] == bound.tolist()


def test_the_dual_clip_bounds_what_a_negative_advantage_can_cost() -> None:
    ratio = _tensor(5.0, 2.0, 5.0).requires_grad_()
    advantages = _tensor(-1.0, -1.0, 1.0)
    plain = clipped_surrogate(ratio, advantages, clip_low=0.2, clip_high=0.2)
    found = dual_clipped(plain, advantages, dual_clip=3.0)
    assert found.tolist() == pytest.approx([-3.0, -2.0, 1.2])
    assert _gradient(ratio, found.sum()) == pytest.approx([0.0, -1.0, 0.0])


def test_cispo_clips_the_weight_and_leaves_every_token_its_gradient() -> None:
    logprobs = _tensor(-1.0, -2.0, -3.0).requires_grad_()
    ratio = _tensor(3.0, 0.1, 1.1)
    advantages = _tensor(1.0, -2.0, 1.0)
    found = cispo_surrogate(ratio, logprobs, advantages, clip_low=0.5, clip_high=1.0)
    assert found.tolist() == pytest.approx([-2.0, 2.0, -3.3])
    assert _gradient(logprobs, found.sum()) == pytest.approx([2.0, -1.0, 1.1])


def test_cispo_sends_no_gradient_through_its_weight() -> None:
    logprobs = _tensor(-1.0).requires_grad_()
    ratio = importance_ratio(logprobs, _tensor(-1.1))
    found = cispo_surrogate(ratio, logprobs, _tensor(2.0), clip_low=1.0, clip_high=1.0)
    assert _gradient(logprobs, found.sum()) == pytest.approx([2.0 * math.exp(0.1)])


def test_reinforce_is_advantage_times_log_probability() -> None:
    logprobs = _tensor(-1.0, -2.0).requires_grad_()
    found = reinforce_surrogate(logprobs, _tensor(3.0, -0.5))
    assert found.tolist() == [-3.0, 1.0]
    assert _gradient(logprobs, found.sum()) == [3.0, -0.5]


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


def test_k1_and_k3_average_to_the_kl_divergence_by_enumeration() -> None:
    policy, reference = _tensor(0.5, 0.3, 0.2), _tensor(0.4, 0.4, 0.2)
    per_arm = k3_kl(policy.log(), reference.log())
    assert per_arm.tolist() == pytest.approx([0.023144, 0.045651, 0.0], abs=5e-7)
    assert (policy * per_arm).sum().item() == pytest.approx(0.0252671539, abs=1e-9)
    first = k1_kl(policy.log(), reference.log())
    assert (policy * first).sum().item() == pytest.approx(0.0252671539, abs=1e-9)
    other_way = k3_kl(reference.log(), policy.log())
    assert (reference * other_way).sum().item() == pytest.approx(0.0258154, abs=5e-8)


def test_the_table_of_mean_gradients_is_true() -> None:
    """In the loss k1 has no mean gradient, k2 that of KL(pi||ref), k3 that of KL(ref||pi)."""
    logits = _tensor(0.4, -0.1, -0.3).requires_grad_()
    reference = _tensor(0.4, 0.4, 0.2)
    log_policy = torch.log_softmax(logits, -1)
    policy = log_policy.detach().exp()
    reverse = (log_policy.exp() * (log_policy - reference.log())).sum()
    forward = (reference * (reference.log() - log_policy)).sum()
    expected = {
        k1_kl: [0.0, 0.0, 0.0],
        k2_kl: _gradient(logits, reverse + 0 * forward),
        k3_kl: None,
    }
    for estimator, gradient in expected.items():
        log_policy = torch.log_softmax(logits, -1)
        if gradient is None:
            forward = (reference * (reference.log() - log_policy)).sum()
            gradient = _gradient(logits, forward)
            log_policy = torch.log_softmax(logits, -1)
        mean = (policy * estimator(log_policy, reference.log())).sum()
        assert _gradient(logits, mean) == pytest.approx(gradient, abs=1e-12)


@pytest.mark.parametrize("difference", [-0.7, 0.0, 0.4])
def test_the_gradients_of_the_estimators_are_those_of_the_table(difference: float) -> None:
    for estimator, expected in (
        (k1_kl, 1.0),
        (k2_kl, -difference),
        (k3_kl, 1.0 - math.exp(difference)),
    ):
        logprob = _tensor(-1.3).requires_grad_()
        found = estimator(logprob, _tensor(-1.3 + difference)).sum()
        assert _gradient(logprob, found) == pytest.approx([expected], abs=1e-12)


def test_a_penalty_in_the_reward_reaches_the_tokens_before_it_in_its_own_sequence() -> None:
    kl = _tensor(1, 2, 4, 8, 16).requires_grad_()
    found = kl_return_to_go(kl, torch.tensor([2, 3]))
    assert found.tolist() == [3, 2, 28, 24, 16]
    assert not found.requires_grad


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


def test_a_sequence_ratio_is_the_product_and_gspos_its_root() -> None:
    policy = _tensor(-1.0, -2.0, -0.5).requires_grad_()
    behavior, lengths = _tensor(-1.2, -1.9, -1.5), torch.tensor([2, 1])
    product = sequence_ratio(policy, behavior, lengths)
    assert product.tolist() == pytest.approx([math.exp(0.1)] * 2 + [math.e])
    root = sequence_mean_ratio(policy, behavior, lengths)
    assert root.tolist() == pytest.approx([math.exp(0.05)] * 2 + [math.e])
    # each of two tokens carries s, and ds/dx = s / 2, so their sum has slope s
    assert _gradient(policy, root.sum())[:2] == pytest.approx([math.exp(0.05)] * 2)


def test_ratios_stay_finite_however_far_two_policies_are_apart() -> None:
    far, near, lengths = _tensor(0.0, -500.0), _tensor(-500.0, 0.0), torch.tensor([1, 1])
    for ratio in (
        importance_ratio(far, near),
        sequence_ratio(far, near, lengths),
        sequence_mean_ratio(far, near, lengths),
    ):
        assert ratio.tolist() == pytest.approx([math.exp(20.0), math.exp(-20.0)])


@pytest.mark.parametrize(
    ("correction", "weights", "cut"),
    [
        ("none", [1.0, 1.0, 1.0, 1.0], [False, False, False, False]),
        ("truncate", [0.25, 2.0, 1.5, 1.2], [False, True, False, False]),
        ("mask", [0.0, 0.0, 1.5, 1.2], [True, True, False, False]),
        ("sequence-truncate", [1.0, 1.0, 1.8, 1.8], [False, False, False, False]),
        ("sequence-mask", [1.0, 1.0, 1.8, 1.8], [False, False, False, False]),
    ],
)
def test_corrections_weigh_tokens_or_whole_sequences(
    correction: Correction, weights: list[float], cut: list[bool]
) -> None:
    behavior = _tensor(-3.0, -4.0, -2.0, -1.0)
    proximal = behavior + _tensor(0.25, 4.0, 1.5, 1.2).log()
    found, where = off_policy_weight(
        proximal,
        behavior,
        torch.tensor([2, 2]),
        correction=correction,
        importance_floor=0.5,
        importance_cap=2.0,
    )
    assert found.tolist() == pytest.approx(weights)
    assert where.tolist() == cut


def test_a_sequence_beyond_the_bounds_is_cut_or_dropped_as_a_whole() -> None:
    behavior, lengths = _tensor(-3.0, -4.0, -1.0), torch.tensor([2, 1])
    proximal = behavior + _tensor(1.5, 2.0, 0.4).log()
    weights = {
        correction: off_policy_weight(
            proximal,
            behavior,
            lengths,
            correction=correction,
            importance_floor=0.5,
            importance_cap=2.0,
        )[0].tolist()
        for correction in ("sequence-truncate", "sequence-mask")
    }
    assert weights["sequence-truncate"] == pytest.approx([2.0, 2.0, 0.4])
    assert weights["sequence-mask"] == [0.0, 0.0, 0.0]


def test_the_interpolated_policy_is_one_step_old() -> None:
    policy, behavior = _tensor(-1.0, -1.0, -1.0, -1.0), _tensor(-2.0, -2.0, -2.0, -2.0)
    found = interpolated_logprobs(policy, behavior, torch.tensor([0, 1, 2, 4]))
    assert found.tolist() == [-1.0, -2.0, -1.5, -1.25]


def test_only_bad_answers_that_the_policy_has_left_behind_are_dropped() -> None:
    behavior = _tensor(-1.0, -1.0, -1.0, -1.0, -1.0)
    policy = _tensor(-1.5, -1.1, -1.5, -1.1, -1.2)
    advantages = _tensor(-1, -1, 1, 1, -1)
    found = divergent_sequences(
        policy, behavior, advantages, torch.tensor([2, 2, 1]), max_divergence=0.25
    )
    assert found.tolist() == [True, True, False, False, False]


@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_what_a_sequence_gets_does_not_depend_on_its_neighbours(
    rows: list[list[float]], random: Random
) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)

    def packed(of: list[int]) -> tuple[Tensor, Tensor]:
        flat = torch.tensor([x for i in of for x in rows[i]], dtype=torch.float32)
        return flat, torch.tensor([len(rows[i]) for i in of])

    means = sequence_mean(*packed(order)).split([len(rows[i]) for i in order])
    to_go = sum_to_go(*packed(order)).split([len(rows[i]) for i in order])
    for place, i in enumerate(order):
        alone = sequence_mean(*packed([i]))
        assert torch.equal(means[place], alone)
        assert alone.tolist() == pytest.approx(
            [sum(rows[i]) / len(rows[i])] * len(rows[i]), abs=1e-5
        )
        expected = [sum(rows[i][t:]) for t in range(len(rows[i]))]
        assert to_go[place].tolist() == pytest.approx(expected, abs=1e-5)
