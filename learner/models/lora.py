"""Low-rank adapters: the weights of the model stay, and a small product beside each is trained.

LoRA (Hu et al., arXiv 2106.09685, equation 3): a linear layer computes ``W x + alpha / rank B A x``
with A [rank, in] random and B [out, rank] zero at the start, so that the first policy is the base
model bit for bit. There is no dropout: training draws no random numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from common.config import LoraConfig
from common.errors import ModelDirectoryError

_MARKS = (".lora_A.weight", ".lora_B.weight")
"""How names of adapters end; PEFT's."""


class LoraLinear(nn.Linear):
    """A linear layer with frozen weights and an adapter that may be switched off."""

    lora_A: nn.Linear
    """[rank, in]."""
    lora_B: nn.Linear
    """[out, rank]."""

    def __init__(self, linear: nn.Linear, *, rank: int, alpha: float, seed: int) -> None:
        super().__init__(
            linear.in_features, linear.out_features, linear.bias is not None, device="meta"
        )
        self.weight, self.bias = linear.weight, linear.bias
        self.rank, self.alpha, self.scaling = rank, alpha, alpha / rank
        self.is_adapted = True
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False, device="meta")
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False, device="meta")
        self.lora_A.weight = nn.Parameter(_uniform(rank, linear.in_features, seed))
        self.lora_B.weight = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        output = super().forward(input)
        if not self.is_adapted:
            return output
        change: Tensor = self.lora_B(self.lora_A(input))
        return output + change * self.scaling

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """``W + alpha / rank * B A`` [out, in], sharded as W is; a collective where it is.

        Rows of W and of B are cut alike, so each rank needs nothing but the whole of A.
        """
        down, up = self.lora_A.weight, self.lora_B.weight
        if not isinstance(self.weight, DTensor):
            return torch.addmm(self.weight, up, down, alpha=self.scaling)
        local_up, whole_down = cast("DTensor", up).to_local(), cast("DTensor", down).full_tensor()
        merged = torch.addmm(self.weight.to_local(), local_up, whole_down, alpha=self.scaling)
        return DTensor.from_local(
            merged,
            self.weight.device_mesh,
            self.weight.placements,
            shape=self.weight.shape,
            stride=self.weight.stride(),
        )


def add_adapters(causal_lm: PreTrainedModel, settings: LoraConfig, *, seed: int) -> None:
    """Freeze ``causal_lm`` and give its linear layers adapters, in place; before sharding.

    The adapters that ``seed`` makes are the same on every device and any number of ranks. Raises
    :class:`ModelDirectoryError` for a target that the model does not have.
    """
    targets = _targets(causal_lm, settings.targets)
    causal_lm.requires_grad_(False)
    for name, linear in targets.items():
        adapted = LoraLinear(
            linear, rank=settings.rank, alpha=settings.alpha, seed=_name_seed(name, seed)
        )
        causal_lm.set_submodule(name, adapted)


def adapted_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers of ``model`` with an adapter, by name."""
    return {name: item for name, item in model.named_modules() if isinstance(item, LoraLinear)}


def is_adapter(name: str) -> bool:
    """Whether a weight of this name is part of an adapter."""
    return name.endswith(_MARKS)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, ``model`` is its base model."""
    layers = list(adapted_layers(model).values())
    for layer in layers:
        layer.is_adapted = False
    try:
        yield
    finally:
        for layer in layers:
            layer.is_adapted = True


def peft_tensor_name(name: str) -> str:
    """What PEFT calls the adapter weight ``name`` in ``adapter_model.safetensors``."""
    return f"base_model.model.{name}"


def peft_config(model: nn.Module, base_model: str) -> dict[str, Any]:
    """``adapter_config.json`` of the adapters of ``model``, as PEFT reads it."""
    layers = adapted_layers(model)
    first = next(iter(layers.values()))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": first.rank,
        "lora_alpha": int(first.alpha) if float(first.alpha).is_integer() else first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in layers}),
        "inference_mode": True,
    }


def _targets(causal_lm: PreTrainedModel, names: tuple[str, ...]) -> dict[str, nn.Linear]:
    """Linear layers whose last name is one of ``names``; without names all but the head."""
    head = causal_lm.get_output_embeddings()
    linears = {
        name: module
        for name, module in causal_lm.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    kinds = {name.rsplit(".", 1)[-1] for name in linears}
    if unknown := sorted(set(names) - kinds):
        raise ModelDirectoryError(
            f"learner.lora.targets: the model has no linear layer {unknown[0]!r} that can be "
            f"adapted (use {', '.join(sorted(kinds))})"
        )
    wanted = set(names) or kinds
    return {name: module for name, module in linears.items() if name.rsplit(".", 1)[-1] in wanted}


def _uniform(rank: int, num_inputs: int, seed: int) -> Tensor:
    """The first A [rank, in]: He et al. (arXiv 1502.01852) with PEFT's gain."""
    bound = 1.0 / math.sqrt(num_inputs)
    source = torch.Generator().manual_seed(seed)
    return torch.empty(rank, num_inputs).uniform_(-bound, bound, generator=source)


def _name_seed(name: str, seed: int) -> int:
    """Every layer begins with other numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "little")
