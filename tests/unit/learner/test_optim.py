"""AdamW and its gradients, alike however the gradients came about."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from learner.step.optim import (
    build_adamw,
    clip_gradients,
    normalize_gradients,
    set_learning_rate,
)


def _weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.full((2, 2), 2.0)), nn.Parameter(torch.full((3,), 2.0))]


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_matrices_decay_and_vectors_do_not(moments: str) -> None:
    weights = _weights()
    optimizer = build_adamw(weights, betas=(0.9, 0.999), weight_decay=0.5, moments=moments)
    set_learning_rate(optimizer, 0.1)
    normalize_gradients(weights, 1.0)
    optimizer.step()
    torch.testing.assert_close(weights[0].detach(), torch.full((2, 2), 2.0 * (1 - 0.1 * 0.5)))
    torch.testing.assert_close(weights[1].detach(), torch.full((3,), 2.0))


def test_moments_exist_from_the_start_and_do_not_change_the_first_step() -> None:
    ours, theirs = _weights(), _weights()
    optimizer = build_adamw(ours, betas=(0.8, 0.9), weight_decay=0.0)
    set_learning_rate(optimizer, 0.01)
    plain = torch.optim.AdamW(theirs, lr=0.01, betas=(0.8, 0.9), weight_decay=0.0)
    assert all(optimizer.state[weight]["step"].item() == 0 for weight in ours)
    for step in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.full_like(mine, 0.3 + step)
            other.grad = torch.full_like(other, 0.3 + step)
        optimizer.step()
        plain.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.detach(), other.detach(), rtol=1e-6, atol=0)


def test_sums_become_means_and_an_unreached_weight_gets_a_gradient_of_zero() -> None:
    first, second = _weights()
    first.grad = torch.full((2, 2), 6.0)
    normalize_gradients([first, second], 4.0)
    assert first.grad.flatten().tolist() == [1.5] * 4
    assert second.grad is not None
    assert second.grad.tolist() == [0.0] * 3


def test_the_norm_is_reported_before_clipping_and_bounded_after() -> None:
    weights = _weights()
    weights[0].grad = torch.full((2, 2), 1.5)
    weights[1].grad = torch.zeros(3)
    assert clip_gradients(weights, 0.0) == 3.0
    assert clip_gradients(weights, 1.0) == 3.0
    assert clip_gradients(weights, 0.0) == pytest.approx(1.0, rel=1e-5)


def test_a_norm_that_is_not_finite_is_reported_and_spreads_nowhere() -> None:
    weights = _weights()
    weights[0].grad = torch.tensor([[float("inf"), 1.0], [1.0, 1.0]])
    weights[1].grad = torch.ones(3)
    assert clip_gradients(weights, 1.0) == float("inf")
    assert weights[1].grad.tolist() == [1.0] * 3


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_norms_and_biases_decay_where_that_is_asked_for(moments: str) -> None:
    weights = _weights()
    optimizer = build_adamw(
        weights, betas=(0.9, 0.999), weight_decay=0.5, decay_on="all", moments=moments
    )
    set_learning_rate(optimizer, 0.1)
    normalize_gradients(weights, 1.0)
    optimizer.step()
    for weight in weights:
        torch.testing.assert_close(weight.detach(), torch.full_like(weight, 2.0 * (1 - 0.1 * 0.5)))
