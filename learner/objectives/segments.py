"""Sums over the tokens of each sequence of a packed microbatch.

Tokens of a microbatch are flat, [T], those of one sequence next to each other, and no sequence is
cut in two. ``lengths``, int64 [S], says how many tokens each sequence has. All sums are made in
float64 over the sequence's own tokens, in order, and with no atomic additions: what a sequence gets
does not depend on what it is packed with, and it is the same at every run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def sequence_mean(values: Tensor, lengths: Tensor) -> Tensor:
    """[T]: every token gets the mean of ``values`` over its sequence; differentiable."""
    mean: Tensor = _SequenceMean.apply(values, lengths)  # type: ignore[no-untyped-call] # torch's
    return mean


def sequence_sum(values: Tensor, lengths: Tensor) -> Tensor:
    """[T]: every token gets the sum of ``values`` over its sequence; differentiable."""
    return sequence_mean(values, lengths) * expand(lengths, lengths).to(values.dtype)


def sum_to_go(values: Tensor, lengths: Tensor) -> Tensor:
    """[T]: every token gets the sum of ``values`` from itself to the end of its sequence."""
    after = values.double().flip(0).cumsum(0).flip(0)
    ends = lengths.cumsum(0)
    beyond = torch.cat([after, after.new_zeros(1)])[ends]
    return (after - expand(beyond, lengths)).to(values.dtype)


def expand(per_sequence: Tensor, lengths: Tensor) -> Tensor:
    """[S] -> [T]: every token gets the value of its sequence."""
    return per_sequence.repeat_interleave(lengths)


class _SequenceMean(torch.autograd.Function):
    """Averaging inside blocks is a symmetric linear map, so the backward pass is the same map."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lengths: Tensor) -> Tensor:
        ctx.save_for_backward(lengths)
        return _block_mean(values, lengths)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (lengths,) = ctx.saved_tensors
        return _block_mean(gradient, lengths), None


def _block_mean(values: Tensor, lengths: Tensor) -> Tensor:
    means = torch.segment_reduce(values.double(), "mean", lengths=lengths)
    return expand(means, lengths).to(values.dtype)
