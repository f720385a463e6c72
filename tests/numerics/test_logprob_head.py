"""The chunked head equals a plain log-softmax, in value, entropy and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.torch.logprob_head import TileLimits, token_logprobs

T, H, V = 23, 8, 37


def _inputs(*, bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, H, generator=generator, dtype=torch.float32).requires_grad_()
    weight = torch.randn(V, H, generator=generator, dtype=torch.float32).requires_grad_()
    offset = torch.randn(V, generator=generator).requires_grad_() if bias else None
    targets = torch.randint(0, V, (T,), generator=generator)
    return hidden, weight, offset, targets


def _plain(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits = torch.nn.functional.linear(hidden, weight, bias) / temperature
    table = torch.log_softmax(logits.float(), dim=-1)
    return table.gather(-1, targets[:, None]).squeeze(-1), -(table.exp() * table).sum(-1)


@pytest.mark.parametrize(
    "limits", [TileLimits(1, 1), TileLimits(8, 40), TileLimits(5, 5 * V), TileLimits(64, 1 << 20)]
)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("entropy_share", [0.0, 0.3])
def test_values_and_gradients_equal_a_plain_log_softmax(
    limits: TileLimits, temperature: float, bias: bool, entropy_share: float
) -> None:
    inputs, copies = _inputs(bias=bias), _inputs(bias=bias)
    hidden, weight, offset, targets = inputs
    logprobs, entropy = token_logprobs(
        hidden,
        weight,
        targets,
        temperature=temperature,
        head_bias=offset,
        limits=limits,
    )
    expected, expected_entropy = _plain(*copies, temperature)
    upstream = torch.linspace(-1, 1, T)
    (logprobs * upstream + entropy_share * entropy * upstream.flip(0)).sum().backward()
    (expected * upstream + entropy_share * expected_entropy * upstream.flip(0)).sum().backward()
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(entropy, expected_entropy, atol=1e-5, rtol=1e-6)
    for ours, theirs in zip(inputs[:3], copies[:3], strict=True):
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_gradients_pass_a_numerical_check_in_double_precision() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.tensor([4, 0, 2])

    def total(values: Tensor) -> Tensor:
        limits = TileLimits(2, 6)
        return token_logprobs(values, weight, targets, temperature=0.7, limits=limits)[0].sum()

    probe = hidden.clone().requires_grad_()
    total(probe).backward()
    assert probe.grad is not None
    for row, column in ((0, 0), (1, 3), (2, 2)):
        step = torch.zeros_like(hidden)
        step[row, column] = 1e-2
        slope = (total(hidden + step) - total(hidden - step)).item() / 2e-2
        assert probe.grad[row, column].item() == pytest.approx(slope, abs=2e-4)


def test_the_entropy_alone_has_its_gradient_too() -> None:
    hidden, weight, _, targets = _inputs(bias=False)
    copies = _inputs(bias=False)
    token_logprobs(hidden, weight, targets, temperature=0.7)[1].sum().backward()
    _plain(copies[0], copies[1], None, targets, 0.7)[1].sum().backward()
    torch.testing.assert_close(hidden.grad, copies[0].grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weight.grad, copies[1].grad, atol=1e-5, rtol=1e-5)


def test_an_entropy_that_nothing_asks_for_changes_no_bit_of_the_gradient() -> None:
    with_zero, without = _inputs(bias=False), _inputs(bias=False)
    for (hidden, weight, _, targets), share in ((with_zero, 0.0), (without, None)):
        logprobs, entropy = token_logprobs(hidden, weight, targets)
        total = logprobs.sum() if share is None else (logprobs + share * entropy).sum()
        total.backward()
    for ours, theirs in zip(with_zero[:2], without[:2], strict=True):
        assert ours is not None
        assert theirs is not None
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_no_more_logits_exist_at_once_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    linear = torch.nn.functional.linear

    def counting(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = linear(hidden, weight, bias)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(torch.nn.functional, "linear", counting)
    hidden, weight, _, targets = _inputs(bias=False)
    token_logprobs(hidden, weight, targets, limits=TileLimits(8, 70))[0].sum().backward()
    assert max(sizes) <= 70
    assert sum(sizes) == 2 * T * V  # once forward, once again backward


def test_kept_logits_are_not_made_again_and_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = 0
    linear = torch.nn.functional.linear

    def counting(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        nonlocal made
        logits = linear(hidden, weight, bias)
        made += logits.numel()
        return logits

    monkeypatch.setattr(torch.nn.functional, "linear", counting)
    found = []
    for num_kept, num_made in ((0, 2 * T * V), (5 * V, 2 * T * V - 5 * V), (T * V, T * V)):
        hidden, weight, _, targets = _inputs(bias=False)
        limits = TileLimits(5, 5 * V, num_kept_logits=num_kept)
        logprobs, entropy = token_logprobs(hidden, weight, targets, limits=limits)
        (logprobs + entropy).sum().backward()
        assert made == num_made
        made = 0
        found.append((logprobs, entropy, hidden.grad, weight.grad))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one is not None
            assert two is not None
            assert torch.equal(one, two)


def test_logits_far_apart_neither_overflow_nor_lose_the_target() -> None:
    """The largest logit comes in the first, a middle and the last tile in turn."""
    hidden = torch.eye(3) * 300.0
    weight = torch.zeros(9, 3)
    weight[0, 0] = weight[4, 1] = weight[8, 2] = 1.0
    targets = torch.tensor([0, 4, 0])
    logprobs, entropy = token_logprobs(hidden, weight, targets, limits=TileLimits(2, 4))
    assert logprobs.tolist() == pytest.approx([0.0, 0.0, -300.0])
    assert entropy.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


def _errors_in_bfloat16(*, float32: bool) -> dict[str, float]:
    """Largest error of the values, and relative error of the gradients, for bfloat16 inputs."""
    hidden, weight, _, targets = _inputs(bias=False)
    narrow = [value.detach().bfloat16().requires_grad_() for value in (hidden, weight)]
    wide = [value.detach().float().requires_grad_() for value in narrow]
    ours, entropy = token_logprobs(
        narrow[0], narrow[1], targets, float32=float32, limits=TileLimits(8, 64)
    )
    expected, expected_entropy = _plain(wide[0], wide[1], None, targets, 1.0)
    ours.sum().backward()
    expected.sum().backward()
    found = {
        "logprobs": (ours - expected).abs().max().item(),
        "entropy": (entropy - expected_entropy).abs().max().item(),
    }
    for name, own, other in zip(("hidden", "weight"), narrow, wide, strict=True):
        assert own.grad is not None
        assert other.grad is not None
        assert own.grad.dtype is torch.bfloat16
        found[name] = float((own.grad.float() - other.grad).norm() / other.grad.norm())
    return found


def test_a_float32_head_computes_bfloat16_weights_without_rounding() -> None:
    wide, narrow = _errors_in_bfloat16(float32=True), _errors_in_bfloat16(float32=False)
    assert wide["logprobs"] < 1e-5 < 1e-3 < narrow["logprobs"]
    assert wide["entropy"] < 1e-5 < 1e-3 < narrow["entropy"]
    # what is left is the rounding of the gradient itself to bfloat16
    assert max(wide["hidden"], wide["weight"]) < 2**-8


def test_a_uniform_head_has_entropy_log_v() -> None:
    logprobs, entropy = token_logprobs(
        torch.zeros(2, H), torch.ones(V, H), torch.tensor([0, V - 1])
    )
    uniform = torch.full((2,), float(V)).log()
    torch.testing.assert_close(entropy, uniform)
    torch.testing.assert_close(logprobs, -uniform)
