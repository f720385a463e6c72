"""Log-probabilities of given tokens from hidden states, without the logits of a whole batch.

The matrix [tokens, vocabulary] is made a chunk of tokens at a time, reduced to two numbers a token,
dropped, and made again in the backward pass. Peak memory is one chunk however long the batch is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_LOGITS = 1 << 24
"""Logits that exist at once (64 MiB in float32): chunks are as many tokens as fit."""


def token_logprobs(
    hidden: Tensor,
    head_weight: Tensor,
    target_ids: Tensor,
    *,
    temperature: float = 1.0,
    head_bias: Tensor | None = None,
    chunk_logits: int = CHUNK_LOGITS,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, both float32 [T] in nats.

    Args:
        hidden: [T, H] final hidden states, after the last norm.
        head_weight: [V, H] of the language-model head.
        target_ids: int64 [T], the token that each hidden state predicts.
        temperature: logits are divided by it before the softmax.
        head_bias: [V] or None.
        chunk_logits: upper bound on logits in memory at once (at least one token's).

    Logits are made in the model's element type and reduced in float32, as samplers do. Gradients
    reach ``hidden`` and the head; the entropy carries none.
    """
    logprobs, entropy = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]  # torch's own
        hidden, head_weight, head_bias, target_ids, temperature, chunk_logits
    )
    return logprobs, entropy


def _logits(
    hidden: Tensor, head_weight: Tensor, head_bias: Tensor | None, temperature: float
) -> Tensor:
    logits = torch.nn.functional.linear(hidden, head_weight, head_bias).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def _chunk_tokens(head_weight: Tensor, chunk_logits: int) -> int:
    return max(1, chunk_logits // head_weight.shape[0])


class _TokenLogprobs(torch.autograd.Function):
    """Forward keeps log Z a token; backward makes each chunk of logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        head_bias: Tensor | None,
        target_ids: Tensor,
        temperature: float,
        chunk_logits: int,
    ) -> tuple[Tensor, Tensor]:
        num_tokens = hidden.shape[0]
        logprobs = hidden.new_empty(num_tokens, dtype=torch.float32)
        entropy = hidden.new_empty(num_tokens, dtype=torch.float32)
        log_normalizer = hidden.new_empty(num_tokens, dtype=torch.float32)
        step = _chunk_tokens(head_weight, chunk_logits)
        for start in range(0, num_tokens, step):
            part = slice(start, start + step)
            logits = _logits(hidden[part], head_weight, head_bias, temperature)
            log_z = torch.logsumexp(logits, dim=-1)
            chosen = logits.gather(-1, target_ids[part, None]).squeeze(-1)
            log_normalizer[part] = log_z
            logprobs[part] = chosen - log_z
            expected_logit = (torch.softmax(logits, dim=-1) * logits).sum(dim=-1)
            entropy[part] = log_z - expected_logit
        ctx.save_for_backward(hidden, head_weight, head_bias, target_ids, log_normalizer)
        ctx.temperature, ctx.step = temperature, step
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor, _grad_entropy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, None, None, None]:
        hidden, head_weight, head_bias, target_ids, log_normalizer = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(head_weight, dtype=torch.float32)
        grad_bias = None if head_bias is None else torch.zeros_like(head_bias, dtype=torch.float32)
        for start in range(0, hidden.shape[0], ctx.step):
            part = slice(start, start + ctx.step)
            logits = _logits(hidden[part], head_weight, head_bias, ctx.temperature)
            # d log p[target] / d logits = (onehot(target) - softmax) / temperature
            scale = (grad_logprobs[part] / ctx.temperature).unsqueeze(-1)
            grad_logits = logits.sub_(log_normalizer[part, None]).exp_().mul_(-scale)
            grad_logits.scatter_add_(-1, target_ids[part, None], scale)
            narrow = grad_logits.to(hidden.dtype)
            grad_hidden[part] = narrow @ head_weight
            grad_weight += (narrow.T @ hidden[part]).float()
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0)
        bias = None if grad_bias is None else grad_bias.to(head_bias.dtype)
        return grad_hidden, grad_weight.to(head_weight.dtype), bias, None, None, None
