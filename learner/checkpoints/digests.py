"""One number that says whether two sets of weights are the same bits, without gathering them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import msgspec
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from common.torch.digest import digest_text, tensor_digest
from common.types import WeightVersion
from common.weight_layout import TensorSpec, WeightManifest
from learner.checkpoints.checkpoint_tensors import TrainedModel
from learner.models.lora import adapted_layers
from learner.models.mesh import Mesh
from learner.models.model import PolicyModel


def weight_digests(
    weights: Iterable[tuple[str, Tensor]], mesh: Mesh, *, dtype: torch.dtype = torch.float32
) -> dict[str, int]:
    """Digest of each of ``weights`` as ``dtype``, by name in their order; a collective.

    Each rank digests its own shard in place; sharded digests add up modulo 2**64.
    """
    names, words = [], []
    for name, weight in weights:
        names.append(name)
        words.append(_local_digest(weight.detach(), mesh, dtype))
    sums = mesh.sum(torch.tensor([_signed(word) for word in words], dtype=torch.int64))
    return {name: int(word) % 2**64 for name, word in zip(names, sums.tolist(), strict=True)}


def policy_digest(policy: TrainedModel, mesh: Mesh) -> str:
    """One digest of all trained weights as float32, 16 hexadecimal digits; a collective."""
    shapes = {name: tuple(weight.shape) for name, weight in policy.trained_weights()}
    specs = tuple(
        TensorSpec(name=name, dtype="float32", shape=shapes[name], digest=digest_text(digest))
        for name, digest in weight_digests(policy.trained_weights(), mesh).items()
    )
    nowhere = WeightVersion(incarnation=0, policy_step=0)
    return WeightManifest(version=nowhere, tensors=specs).digest()


def base_digest(policy: PolicyModel, mesh: Mesh) -> str:
    """One digest of what adapters are trained on: frozen weights and how they are adapted.

    A collective; "" for a policy without adapters.
    """
    if not policy.has_adapters:
        return ""
    adapted = [(name, layer.rank, layer.alpha) for name, layer in adapted_layers(policy).items()]
    frozen = sorted(weight_digests(policy.frozen_weights(), mesh).items())
    return hashlib.sha256(msgspec.json.encode((adapted, frozen))).hexdigest()[:16]


def shard_offset(num_rows: int, row_elements: int, rank: int, world_size: int) -> int:
    """Elements before the shard of ``rank``: FSDP2 cuts dim 0 as ``torch.chunk`` does."""
    rows_per_rank = -(-num_rows // world_size)
    return min(rank * rows_per_rank, num_rows) * row_elements


def _local_digest(weight: Tensor, mesh: Mesh, dtype: torch.dtype) -> int:
    if not isinstance(weight, DTensor):
        return tensor_digest(weight.to(dtype)) if mesh.is_main else 0
    row_elements = math.prod(weight.shape[1:])
    offset = shard_offset(weight.shape[0], row_elements, mesh.rank, mesh.world_size)
    local = weight.to_local().to(dtype)
    return tensor_digest(local, offset_elements=offset) if local.numel() else 0


def _signed(word: int) -> int:
    """A 64-bit word as torch's int64 holds it."""
    return word - 2**64 if word >= 2**63 else word
