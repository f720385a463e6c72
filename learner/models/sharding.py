"""FSDP2 around any model of decoder layers: what is sharded, in which precision, kept where."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from transformers import PreTrainedModel

from learner.models.mesh import Mesh


def shard_layers(
    model: nn.Module, layers: Sequence[nn.Module], mesh: Mesh, *, offload: bool = False
) -> None:
    """Shard ``model`` by its ``layers``, then the rest; one CPU rank is left as it is.

    ``offload`` keeps the shards, their gradients and with them the optimizer in host memory.
    """
    if mesh.data_axis is None:
        return
    bfloat16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    precision = bfloat16 if mesh.device.type == "cuda" else MixedPrecisionPolicy()
    host = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
    place = host if offload else OffloadPolicy()
    for layer in layers:
        fully_shard(layer, mesh=mesh.data_axis, mp_policy=precision, offload_policy=place)
    fully_shard(
        model,
        mesh=mesh.data_axis,
        mp_policy=precision,
        offload_policy=place,
        reshard_after_forward=False,
    )
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # gradients are unnormalised sums over all tokens of all ranks, divided once per step
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled reductions


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Instances of the classes that the model itself says must not be split."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def free_gathered(model: nn.Module) -> None:
    """After a forward pass without a backward pass, which alone would free the gathered root.

    The next forward would find it stale.
    """
    if isinstance(model, FSDPModule):
        model.reshard()
