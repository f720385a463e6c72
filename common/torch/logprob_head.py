"""Log-probabilities of given tokens from hidden states, without the logits of a whole batch.

The matrix [tokens, vocabulary] is made a tile at a time, reduced to a few numbers a token, dropped,
and made again in the backward pass (cut cross-entropy, arXiv 2411.09009, does so in one kernel).
Sums over the vocabulary are carried from tile to tile as in online softmax (arXiv 1805.02867).
Peak memory is a few tiles however long the batch and however large the vocabulary is: what fits a
fixed allowance is kept for the backward pass, so that small vocabularies are multiplied once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class TileLimits:
    """How large a tile of logits may be: upper bounds, of at least one token and one entry."""

    num_tokens: int
    num_logits: int
    num_kept_logits: int = 0
    """Logits of all tiles that wait for the backward pass, so that it need not make them again."""


CPU_TILE = TileLimits(num_tokens=256, num_logits=1 << 18, num_kept_logits=1 << 23)
"""1 MiB in float32: what is done to a tile between two matrix products stays in a core's cache."""
GPU_TILE = TileLimits(num_tokens=1024, num_logits=1 << 27, num_kept_logits=1 << 27)
"""512 MiB in float32: few, large kernels, and a weight matrix that is not read again too often."""


def token_logprobs(
    hidden: Tensor,
    head_weight: Tensor,
    target_ids: Tensor,
    *,
    temperature: float = 1.0,
    head_bias: Tensor | None = None,
    float32: bool = False,
    limits: TileLimits | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, both float32 [T] in nats.

    Args:
        hidden: [T, H] final hidden states, after the last norm.
        head_weight: [V, H] of the language-model head.
        target_ids: int64 [T], the token that each hidden state predicts.
        temperature: logits are divided by it before the softmax.
        head_bias: [V] or None.
        float32: multiply in float32, and not in the element type of the model (MiniMax-M1, arXiv
            2506.13585, section 3.2: sampler and learner then differ less).
        limits: of a tile; by default what suits the device.

    Logits are reduced in float32 in any case, as samplers do. Gradients of both results reach
    ``hidden`` and the head; where the entropy has none upstream it costs nothing.
    """
    if limits is None:
        limits = GPU_TILE if hidden.is_cuda else CPU_TILE
    if not torch.is_grad_enabled():
        limits = replace(limits, num_kept_logits=0)
    head = _Head(head_weight, head_bias, temperature, float32)
    logprobs, entropy = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]  # torch's own
        hidden, head_weight, head_bias, target_ids, head, limits
    )
    return logprobs, entropy


@dataclass(frozen=True, slots=True)
class _Head:
    """The last linear layer, a block of the vocabulary at a time."""

    weight: Tensor
    bias: Tensor | None
    temperature: float
    float32: bool

    def block_weight(self, block: slice) -> Tensor:
        """[v, H] as it is multiplied with."""
        weight = self.weight[block]
        return weight.float() if self.float32 else weight

    def operand(self, hidden: Tensor) -> Tensor:
        """Hidden states as they are multiplied."""
        return hidden.float() if self.float32 else hidden

    def logits(self, hidden: Tensor, block: slice) -> Tensor:
        """float32 [t, v], free to be written over."""
        bias = None if self.bias is None else self.bias[block].to(hidden.dtype)
        logits = torch.nn.functional.linear(hidden, self.block_weight(block), bias).float()
        return logits if self.temperature == 1.0 else logits.div_(self.temperature)


def _slices(total: int, limit: int) -> Iterator[slice]:
    """Cut ``total`` into the fewest parts of at most ``limit``, of like size."""
    if total == 0:
        return
    size = -(-total // -(-total // limit))
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _token_blocks(hidden: Tensor, limits: TileLimits) -> Iterator[slice]:
    yield from _slices(hidden.shape[0], max(1, min(limits.num_tokens, limits.num_logits)))


def _vocabulary_blocks(num_tokens: int, weight: Tensor, limits: TileLimits) -> Iterator[slice]:
    yield from _slices(weight.shape[0], max(1, limits.num_logits // num_tokens))


def _place_in_block(target_ids: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Column [t, 1] of each target, and bool [t] whether it is in the block at all."""
    column = (target_ids - block.start).clamp(0, block.stop - block.start - 1)
    inside = (target_ids >= block.start) & (target_ids < block.stop)
    return column.unsqueeze(-1), inside


@dataclass(slots=True)
class _RunningSoftmax:
    """Sums over the part of the vocabulary that was seen, relative to its largest logit; [t]."""

    largest: Tensor
    total: Tensor
    """Sum of exp(z - largest)."""
    weighted: Tensor
    """Sum of exp(z - largest) * (z - largest)."""
    chosen: Tensor
    """The target's logit."""

    @classmethod
    def empty(cls, like: Tensor) -> _RunningSoftmax:
        """Nothing seen; ``like`` is a float32 [t]."""
        zeros = torch.zeros_like
        return cls(torch.full_like(like, -torch.inf), zeros(like), zeros(like), zeros(like))

    def add(self, logits: Tensor, column: Tensor, inside: Tensor, *, keep: bool) -> None:
        """Take a tile [t, v] in; it is written over unless it is to ``keep``."""
        self.chosen = torch.where(inside, logits.gather(-1, column).squeeze(-1), self.chosen)
        largest = torch.maximum(self.largest, logits.amax(dim=-1))
        shift = self.largest - largest
        seen = (
            shift > -torch.inf
        )  # at the first tile there is nothing to carry, and -inf * 0 is NaN
        carried = torch.where(seen, shift, 0.0)
        scale = shift.exp()
        above = largest.unsqueeze(-1)
        shifted = logits - above if keep else logits.sub_(above)
        exponentials = shifted.exp()
        self.weighted = scale * (self.weighted + carried * self.total)
        self.weighted += shifted.mul_(exponentials).sum(dim=-1)
        self.total = scale * self.total + exponentials.sum(dim=-1)
        self.largest = largest

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """log Z, log-probability of the target and entropy."""
        log_total = self.total.log()
        log_normalizer = self.largest + log_total
        return (
            log_normalizer,
            self.chosen - log_normalizer,
            log_total - self.weighted / self.total,
        )


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to the float32 ``total`` in place."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


class _TokenLogprobs(torch.autograd.Function):
    """Forward keeps log Z and entropy a token; backward makes again what else it needs."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        head_bias: Tensor | None,
        target_ids: Tensor,
        head: _Head,
        limits: TileLimits,
    ) -> tuple[Tensor, Tensor]:
        results = hidden.new_empty(3, hidden.shape[0], dtype=torch.float32)
        kept: dict[tuple[int, int], Tensor] = {}
        num_spare = limits.num_kept_logits
        for part in _token_blocks(hidden, limits):
            rows = head.operand(hidden[part])
            running = _RunningSoftmax.empty(results[0, part])
            for block in _vocabulary_blocks(rows.shape[0], head_weight, limits):
                logits = head.logits(rows, block)
                keep = logits.numel() <= num_spare
                running.add(logits, *_place_in_block(target_ids[part], block), keep=keep)
                if keep:
                    kept[part.start, block.start] = logits
                    num_spare -= logits.numel()
            results[:, part] = torch.stack(running.finish())
        log_normalizer, logprobs, entropy = results.unbind()
        logprobs, entropy = logprobs.clone(), entropy.clone()
        ctx.save_for_backward(hidden, head_weight, head_bias, target_ids, log_normalizer, entropy)
        ctx.temperature, ctx.float32, ctx.limits = head.temperature, head.float32, limits
        ctx.kept = kept
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, None, None, None]:
        hidden, weight, bias, target_ids, log_normalizer, entropy = ctx.saved_tensors
        head = _Head(weight, bias, ctx.temperature, ctx.float32)
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(log_normalizer)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for part in _token_blocks(hidden, ctx.limits):
            rows = head.operand(hidden[part])
            scale = (grad_logprobs[part] / ctx.temperature).unsqueeze(-1)
            grad_rows = torch.zeros_like(rows, dtype=torch.float32)
            for block in _vocabulary_blocks(rows.shape[0], weight, ctx.limits):
                logits = ctx.kept.pop((part.start, block.start), None)
                if logits is None:
                    logits = head.logits(rows, block)
                log_probs = logits.sub_(log_normalizer[part, None])
                if grad_entropy is None:
                    tile = log_probs.exp_().mul_(-scale)
                else:
                    entropy_scale = (grad_entropy[part] / ctx.temperature).unsqueeze(-1)
                    # d H / d logits = -p (log p + H)
                    factor = (log_probs + entropy[part, None]).mul_(entropy_scale).add_(scale)
                    tile = log_probs.exp_().mul_(factor).neg_()
                # d log p[target] / d logits = onehot(target) - p
                column, inside = _place_in_block(target_ids[part], block)
                tile.scatter_add_(-1, column, scale * inside.unsqueeze(-1))
                if grad_bias is not None:
                    grad_bias[block] += tile.sum(dim=0)
                narrow = tile.to(rows.dtype)
                _accumulate(grad_rows, narrow, head.block_weight(block))
                _accumulate(grad_weight[block], narrow.T, rows)
            grad_hidden[part] = grad_rows
        narrow_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight.to(weight.dtype), narrow_bias, None, None, None
