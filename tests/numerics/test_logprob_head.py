"""The chunked head equals a plain log-softmax, in value, entropy and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.torch.logprob_head import token_logprobs

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


@pytest.mark.parametrize("chunk_logits", [1, V, 5 * V + 3, 1 << 24])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_equal_a_plain_log_softmax(
    chunk_logits: int, temperature: float, bias: bool
) -> None:
    inputs, copies = _inputs(bias=bias), _inputs(bias=bias)
    hidden, weight, offset, targets = inputs
    logprobs, entropy = token_logprobs(
        hidden,
        weight,
        targets,
        temperature=temperature,
        head_bias=offset,
        chunk_logits=chunk_logits,
    )
    expected, expected_entropy = _plain(*copies, temperature)
    upstream = torch.linspace(-1, 1, T)
    (logprobs * upstream).sum().backward()
    (expected * upstream).sum().backward()
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
        return token_logprobs(values, weight, targets, temperature=0.7, chunk_logits=10)[0].sum()

    probe = hidden.clone().requires_grad_()
    total(probe).backward()
    assert probe.grad is not None
    for row, column in ((0, 0), (1, 3), (2, 2)):
        step = torch.zeros_like(hidden)
        step[row, column] = 1e-2
        slope = (total(hidden + step) - total(hidden - step)).item() / 2e-2
        assert probe.grad[row, column].item() == pytest.approx(slope, abs=2e-4)


def test_no_more_logits_exist_at_once_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    linear = torch.nn.functional.linear

    def counting(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = linear(hidden, weight, bias)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(torch.nn.functional, "linear", counting)
    hidden, weight, _, targets = _inputs(bias=False)
    token_logprobs(hidden, weight, targets, chunk_logits=4 * V)[0].sum().backward()
    assert max(sizes) <= 4 * V
    assert sum(sizes) == 2 * T * V  # once forward, once again backward


def test_a_uniform_head_has_entropy_log_v() -> None:
    logprobs, entropy = token_logprobs(
        torch.zeros(2, H), torch.ones(V, H), torch.tensor([0, V - 1])
    )
    uniform = torch.full((2,), float(V)).log()
    torch.testing.assert_close(entropy, uniform)
    torch.testing.assert_close(logprobs, -uniform)
