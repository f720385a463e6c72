"""AdamW and clipping, alike for plain and for sharded parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from common.config import LearnerConfig
from learner.checkpoints.checkpoint_tensors import TrainedModel
from learner.step.narrow_adamw import NarrowAdamW

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_adamw(
    parameters: Iterable[nn.Parameter],
    *,
    betas: tuple[float, float],
    weight_decay: float,
    decay_on: str = "matrices",
    moments: str = "float32",
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) with moments of type ``moments``.

    ``decay_on`` ``matrices`` leaves norms and biases out of the weight decay, ``all`` does not. The
    moments exist from the start, so that a checkpoint of step 0 is like any other.
    """
    weights = list(parameters)
    groups = _decay_groups(weights, weight_decay, decay_on)
    optimizer: torch.optim.Optimizer
    if moments == "bfloat16":
        optimizer = NarrowAdamW(groups, betas=betas)
    else:
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
    for weight in weights:
        optimizer.state[weight] = {
            "step": torch.zeros((), dtype=torch.float32, device=weight.device),
            "exp_avg": torch.zeros_like(weight, dtype=_DTYPES[moments]),
            "exp_avg_sq": torch.zeros_like(weight, dtype=_DTYPES[moments]),
        }
    return optimizer


def _decay_groups(
    weights: Sequence[nn.Parameter], weight_decay: float, decay_on: str
) -> list[dict[str, Any]]:
    """Parameter groups with and without weight decay; none is empty."""
    exempt = [item for item in weights if item.ndim < 2 and decay_on == "matrices"]
    exempt_ids = {id(item) for item in exempt}
    decayed = [item for item in weights if id(item) not in exempt_ids]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def configured_adamw(model: TrainedModel, settings: LearnerConfig) -> torch.optim.Optimizer:
    """:func:`build_adamw` for what is trained of ``model``, as ``[learner]`` says."""
    return build_adamw(
        [weight for _, weight in model.trained_weights()],
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        decay_on=settings.weight_decay_on,
        moments=settings.optimizer_dtype,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


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
