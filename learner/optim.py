"""AdamW, learning-rate schedules and clipping, alike for plain and for sharded parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


def build_adamw(
    parameters: Iterable[nn.Parameter], *, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101); matrices decay, norms and biases do not.

    The moments exist from the start, so that a checkpoint of step 0 is like any other.
    """
    weights = list(parameters)
    groups = [
        {"params": [item for item in weights if item.ndim >= 2], "weight_decay": weight_decay},
        {"params": [item for item in weights if item.ndim < 2], "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(used, lr=0.0, betas=betas, fused=True)
    for weight in weights:
        optimizer.state[weight] = {
            "step": torch.zeros((), dtype=torch.float32, device=weight.device),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def warmup_constant(step: int, *, peak: float, warmup_steps: int) -> float:
    """Linear from ``peak / warmup_steps`` at step 0 to ``peak``, then constant."""
    return peak * min(1.0, (step + 1) / warmup_steps) if warmup_steps else peak


def warmup_cosine(
    step: int, *, peak: float, final: float, warmup_steps: int, num_steps: int
) -> float:
    """Linear warm-up, then half a cosine from ``peak`` down to ``final`` at ``num_steps - 1``."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    remaining = max(1, num_steps - 1 - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / remaining)
    return final + 0.5 * (peak - final) * (1.0 + math.cos(math.pi * progress))


def normalize_gradients(parameters: Iterable[nn.Parameter], denominator: float) -> None:
    """Turn accumulated sums into the mean that the objective asks for, in place.

    A parameter that no token reached gets a gradient of 0, so that its moments decay alike on every
    rank and in every packing.
    """
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    torch._foreach_div_(gradients, denominator)


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Global L2 norm before clipping, over all ranks; clips in place where ``max_norm`` > 0."""
    norm: Tensor = get_total_norm([item.grad for item in parameters if item.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if max_norm > 0 and torch.isfinite(norm):
        clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)
