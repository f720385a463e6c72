"""Digests of what ranks must have in common: a device that computes wrongly is noticed and named.

Under full sharding no two ranks hold the same weight, but all hold the same buffers, the same
unsharded weights and the same step counters; under a mesh with replicas, whole shards too. Each
piece is named by tensor and place in it, and pieces of one name are compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from common.errors import FatalError
from common.torch.digest import digest_text, tensor_digest
from learner.health.guards import differing_ranks
from learner.models.mesh import Mesh
from learner.models.model import PolicyModel


def compare_replicas(
    policy: PolicyModel, optimizer: torch.optim.Optimizer, mesh: Mesh, policy_step: int
) -> None:
    """Raise :class:`FatalError` on every rank when one holds something else; a collective."""
    if mesh.world_size == 1:
        return
    own = {name: _digest(piece) for name, piece in held_pieces(policy, optimizer)}
    shares = mesh.gather(msgspec.json.encode(own))
    wrong = differing_ranks([msgspec.json.decode(item, type=dict[str, str]) for item in shares])
    if wrong:
        raise FatalError(f"after step {policy_step}: {wrong[0].message()}")


def held_pieces(
    policy: PolicyModel, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, Tensor]]:
    """Everything that this rank holds, by tensor and place; ranks compare what they share."""
    for name, buffer in policy.causal_lm.named_buffers():
        yield f"buffer {name}", buffer
    for name, weight in policy.causal_lm.named_parameters():
        piece, place = _local(weight.detach())
        yield f"weight {name}{place}", piece
        for moment, value in optimizer.state.get(weight, {}).items():
            piece, place = _local(value)
            yield f"{moment} of {name}{place}", piece


def _local(tensor: Tensor) -> tuple[Tensor, str]:
    if not isinstance(tensor, DTensor):
        return tensor, ""
    shape, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return tensor.to_local(), f" at {list(offset)} of {list(shape)}"


def _digest(tensor: Tensor) -> str:
    wide = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor
    return digest_text(tensor_digest(wide)) if wide.numel() else ""
