"""AdamW whose moments are kept in bfloat16: 4 bytes a weight instead of 8.

A step is computed in float32, and only what is kept is rounded, *stochastically*: up or down with
the probability that makes the rounding right on average. Rounding to the nearest would not do: with
``beta2 = 0.999`` the second moment changes by at most a thousandth when gradients shrink, a quarter
of what bfloat16 resolves, and would never go down. The random bits are a hash of step, weight and
place in the weight, so a replayed step, and one on another number of ranks, rounds alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from learner.checkpoints.digests import shard_offset

_WORD = 0xFFFFFFFF
_LOW_BITS = 0xFFFF
"""Bits of a float32 that a bfloat16 has no room for."""
_PIECE = 1 << 20
"""Elements computed at once: temporaries stay small beside the weights."""


class NarrowAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2) with bfloat16 moments."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        betas: tuple[float, float],
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(list(groups), {"lr": 0.0, "betas": betas, "eps": epsilon})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient; ``closure`` is not called."""
        number = 0
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step_weight(weight, group, number)
                number += 1

    def _step_weight(self, weight: nn.Parameter, group: dict[str, Any], number: int) -> None:
        state = self.state[weight]
        state["step"] += 1
        locals_ = (weight, weight.grad, state["exp_avg"], state["exp_avg_sq"])
        parts = [_flat(tensor) for tensor in locals_ if tensor is not None]
        offset, step = local_offset(weight), int(state["step"])
        for start in range(0, parts[0].numel(), _PIECE):
            pieces = [part[start : start + _PIECE] for part in parts]
            narrow_adamw_step(
                *pieces,
                group=group,
                step=step,
                offset=offset + start,
                seed=mix(mix(step) ^ number),
            )


def narrow_adamw_step(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    group: dict[str, Any],
    step: int,
    offset: int,
    seed: int,
) -> None:
    """One step of flat float32 ``weight`` with bfloat16 moments, all [N], in place.

    ``offset`` is the place of the first element in the whole weight; ``step`` counts from 1.
    """
    beta1, beta2 = group["betas"]
    first = exp_avg.float().lerp_(gradient, 1.0 - beta1)
    second = exp_avg_sq.float().mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    root = second.sqrt().div_(math.sqrt(1.0 - beta2**step)).add_(group["eps"])
    weight.mul_(1.0 - group["lr"] * group["weight_decay"])
    weight.addcdiv_(first, root, value=-group["lr"] / (1.0 - beta1**step))
    exp_avg.copy_(round_stochastically(first, offset, mix(seed ^ 1)))
    exp_avg_sq.copy_(round_stochastically(second, offset, mix(seed ^ 2)))


def round_stochastically(values: Tensor, offset: int, seed: int) -> Tensor:
    """bfloat16 of float32 ``values`` [N], right on average; element i draws from ``offset + i``.

    Random bits are added below the last bit that is kept, and what is below is cut off.
    """
    places = torch.arange(offset, offset + values.numel(), device=values.device)
    noise = (_mix_words((places & _WORD) ^ seed) & _LOW_BITS).to(torch.int32)
    bits = (values.view(torch.int32) + noise).bitwise_and_(~_LOW_BITS)
    return bits.view(torch.float32).bfloat16()


def mix(word: int) -> int:
    """A 32-bit word that depends on every bit of ``word`` (Wellons' lowbias32)."""
    word = ((word ^ (word >> 16)) * 0x7FEB352D) & _WORD
    word = ((word ^ (word >> 15)) * 0x846CA68B) & _WORD
    return word ^ (word >> 16)


def local_offset(weight: Tensor) -> int:
    """Elements of the whole weight before the part that this rank holds."""
    if not isinstance(weight, DTensor):
        return 0
    mesh = weight.device_mesh
    row_elements = math.prod(weight.shape[1:])
    return shard_offset(weight.shape[0], row_elements, mesh.get_local_rank(), mesh.size())


def _mix_words(words: Tensor) -> Tensor:
    """:func:`mix` of int64 words; products wrap, and only their low halves are used."""
    words = ((words ^ (words >> 16)) * 0x7FEB352D) & _WORD
    words = ((words ^ (words >> 15)) * 0x846CA68B) & _WORD
    return words ^ (words >> 16)


def _flat(tensor: Tensor) -> Tensor:
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach().view(-1)
