"""Moments in bfloat16 are right on average, and the same bits wherever and whenever computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from learner.step.narrow_adamw import narrow_adamw_step, round_stochastically
from learner.step.optim import build_adamw, set_learning_rate
from learner.train import take_step
from tests.unit.learner.small_run import small_broker, small_config, small_run, weights_of

_GROUP: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "lr": 1e-3, "weight_decay": 0.1}


def _random(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@given(value=st.floats(-(2.0**100), 2.0**100, width=32), seed=st.integers(0, 2**32 - 1))
def test_a_value_becomes_one_of_its_two_neighbours(value: float, seed: int) -> None:
    exact = torch.full((64,), value)
    rounded = round_stochastically(exact, 0, seed)
    bits = rounded.view(torch.int16).int() & 0x7FFF
    below = (exact.view(torch.int32) >> 16) & 0x7FFF
    assert set((bits - below).tolist()) <= {0, 1}
    if exact.bfloat16().float()[0] == value:
        assert torch.equal(rounded.float(), exact)


def test_rounding_is_right_on_average() -> None:
    """1 + 3/10 of a step goes up in 3 of 10 places; sigma of the share is 0.0005 for 10**6."""
    step = 2.0**-7
    for share, seed in ((0.3, 1), (0.71, 2)):
        values = torch.full((1_000_000,), 1.0 + share * step)
        rounded_up = (round_stochastically(values, 0, seed) > 1.0).float().mean().item()
        assert rounded_up == pytest.approx(share, abs=0.0025)


def test_neighbouring_places_steps_and_moments_draw_independently() -> None:
    values = torch.full((100_000,), 1.0 + 2.0**-8)
    up = round_stochastically(values, 0, 7) > 1.0
    for other in (
        round_stochastically(values, 1, 7) > 1.0,
        round_stochastically(values, 0, 8) > 1.0,
    ):
        assert (up == other).float().mean().item() == pytest.approx(0.5, abs=0.01)


def test_the_first_step_is_that_of_float32_moments() -> None:
    weights = {name: nn.Parameter(_random(64, 0).view(8, 8)) for name in ("float32", "bfloat16")}
    for name, weight in weights.items():
        optimizer = build_adamw([weight], betas=(0.9, 0.99), weight_decay=0.1, moments=name)
        set_learning_rate(optimizer, 0.01)
        weight.grad = _random(64, 1).view(8, 8)
        optimizer.step()
    torch.testing.assert_close(weights["bfloat16"], weights["float32"], rtol=1e-5, atol=1e-7)


def test_many_steps_stay_close_to_those_of_float32_moments() -> None:
    """On a noisy quadratic: where both end, and how far their paths are apart on the way."""
    weights = {name: nn.Parameter(torch.ones(32, 32)) for name in ("float32", "bfloat16")}
    optimizers = {
        name: build_adamw([weight], betas=(0.9, 0.999), weight_decay=0.0, moments=name)
        for name, weight in weights.items()
    }
    for step in range(300):
        noise = _random(1024, step).view(32, 32)
        for name, weight in weights.items():
            set_learning_rate(optimizers[name], 5e-3)
            weight.grad = weight.detach() + 0.3 * noise
            optimizers[name].step()
    difference = (weights["bfloat16"] - weights["float32"]).norm() / 32
    assert weights["float32"].norm() / 32 < 0.15
    assert difference < 0.005


def test_a_second_moment_goes_down_when_gradients_shrink() -> None:
    """Rounded to the nearest it would stay at 1 for ever: a step takes off a thousandth."""
    weight, gradient = torch.zeros(4096), torch.zeros(4096)
    exp_avg, exp_avg_sq = torch.zeros(4096).bfloat16(), torch.ones(4096).bfloat16()
    for step in range(1, 501):
        narrow_adamw_step(
            weight, gradient, exp_avg, exp_avg_sq, group=_GROUP, step=step, offset=0, seed=step
        )
    assert exp_avg_sq.float().mean().item() == pytest.approx(0.999**500, rel=0.01)


@pytest.mark.parametrize("cut", [1, 37, 99])
def test_a_weight_in_two_parts_has_the_bits_of_a_whole_one(cut: int) -> None:
    def tensors() -> list[Tensor]:
        moments = [_random(100, 2).bfloat16(), _random(100, 3).square().bfloat16()]
        return [_random(100, 0), _random(100, 1), *moments]

    whole, parts = tensors(), tensors()
    narrow_adamw_step(*whole, group=_GROUP, step=5, offset=0, seed=11)
    for part, offset in ((slice(0, cut), 0), (slice(cut, None), cut)):
        pieces = [tensor[part] for tensor in parts]
        narrow_adamw_step(*pieces, group=_GROUP, step=5, offset=offset, seed=11)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


def test_two_weights_of_one_step_do_not_round_alike() -> None:
    weights = [nn.Parameter(torch.ones(64, 64)) for _ in range(2)]
    optimizer = build_adamw(weights, betas=(0.9, 0.999), weight_decay=0.0, moments="bfloat16")
    for weight in weights:
        weight.grad = _random(4096, 0).view(64, 64)
    optimizer.step()
    first, second = (optimizer.state[weight]["exp_avg"] for weight in weights)
    assert first.dtype is torch.bfloat16
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, second, rtol=2**-7, atol=0)


def test_a_resumed_run_with_narrow_moments_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    config = small_config(tmp_path, optimizer_dtype="bfloat16", checkpoint_every=2)
    with small_run(config) as run:
        for _ in range(3):
            take_step(run)
        whole = weights_of(run.policy)
    with small_run(config, small_broker(next_group=4, policy_step=2)) as run:
        run.restore(2)
        take_step(run)
        for name, weight in run.policy.trained_weights():
            assert torch.equal(weight, whole[name]), name
            assert run.optimizer.state[weight]["exp_avg_sq"].dtype is torch.bfloat16


def test_a_run_may_go_on_with_narrower_moments(tmp_path: Path) -> None:
    with small_run(small_config(tmp_path, checkpoint_every=1)) as run:
        take_step(run)
        wide = {
            name: run.optimizer.state[weight]["exp_avg_sq"].clone()
            for name, weight in run.policy.trained_weights()
        }
    with small_run(small_config(tmp_path, optimizer_dtype="bfloat16")) as run:
        run.restore(1)
        for name, weight in run.policy.trained_weights():
            assert torch.equal(run.optimizer.state[weight]["exp_avg_sq"], wide[name].bfloat16())
