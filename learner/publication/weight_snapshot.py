"""The policy's weights as they are at a step boundary, in host memory (hop: learner -> actor).

Each rank copies the part that it holds, in the element type that is published, and nothing else:
the training loop waits for one copy of its own shard. Whole tensors exist only on rank 0, one
transfer bucket at a time, while the background thread gathers them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from common.errors import FatalError
from common.torch.digest import tensor_digest
from common.types import WeightVersion
from common.weight_layout import Canary, TensorSpec

_NO_DIGEST = "0" * 16


@dataclass(frozen=True, slots=True)
class Part:
    """Elements ``start`` to ``stop`` of a flattened tensor."""

    start: int
    stop: int

    @property
    def num_elements(self) -> int:
        """Zero for a rank that holds nothing of the tensor."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class ShardedTensor:
    """One tensor and the part of it that each rank contributes."""

    spec: TensorSpec
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """This rank's share of one version: ``shards[i]`` is its part of ``layout[i]``, flat."""

    version: WeightVersion
    canary: Canary
    layout: tuple[ShardedTensor, ...]
    shards: tuple[torch.Tensor, ...]
    taken_at_s: float


class PublishedWeights(Protocol):
    """What a snapshot asks of a policy; see :class:`learner.models.model.PolicyModel`."""

    def published_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights under their canonical Hugging Face names, tied ones once."""
        ...


class PointToPoint(Protocol):
    """What gathering asks of a process group."""

    @property
    def rank(self) -> int:
        """This process."""
        ...

    @property
    def num_ranks(self) -> int:
        """All of them."""
        ...

    def send(self, tensor: torch.Tensor, rank: int) -> None:
        """Send a contiguous CPU tensor."""
        ...

    def receive(self, tensor: torch.Tensor, rank: int) -> None:
        """Receive into a contiguous CPU tensor."""
        ...


class SnapshotBuffer:
    """Host memory for one snapshot, pinned where there is a GPU; reused."""

    def __init__(self) -> None:
        self._shards: dict[int, torch.Tensor] = {}

    def shard(self, position: int, num_elements: int, dtype: torch.dtype) -> torch.Tensor:
        """The flat tensor at ``position``; the same memory as long as its size stays the same."""
        held = self._shards.get(position)
        if held is None or held.numel() != num_elements:
            pin_memory = torch.cuda.is_available()
            held = torch.empty(num_elements, dtype=dtype, pin_memory=pin_memory)
            self._shards[position] = held
        return held


def row_parts(shape: Sequence[int], num_ranks: int) -> tuple[Part, ...]:
    """How FSDP2 cuts a tensor along its first dimension: ``torch.chunk``, short ranks last."""
    num_rows = shape[0]
    row_elements = 1
    for size in shape[1:]:
        row_elements *= size
    chunk = -(-num_rows // num_ranks)
    bounds = [min(rank * chunk, num_rows) * row_elements for rank in range(num_ranks + 1)]
    return tuple(Part(start, stop) for start, stop in itertools.pairwise(bounds))


def take_snapshot(
    policy: PublishedWeights,
    version: WeightVersion,
    canary: Canary,
    *,
    dtype: str,
    rank: int,
    num_ranks: int,
    buffer: SnapshotBuffer,
) -> Snapshot:
    """Copy this rank's share of the weights of ``policy`` into ``buffer``."""
    taken_at_s = time.monotonic()
    if isinstance(policy, FSDPModule):
        policy.reshard()  # what a forward left gathered is not what the optimizer updated
    layout, shards = [], []
    for position, (name, weight) in enumerate(policy.published_weights()):
        layout.append(_sharded(name, weight, dtype, num_ranks))
        num_elements = layout[-1].parts[rank].num_elements
        shards.append(buffer.shard(position, num_elements, getattr(torch, dtype)))
        _copy(weight, shards[-1])
    _finish_copies()
    return Snapshot(
        version=version,
        canary=canary,
        layout=tuple(layout),
        shards=tuple(shards),
        taken_at_s=taken_at_s,
    )


def gather_digests(snapshot: Snapshot, group: PointToPoint) -> list[int]:
    """Digest of every whole tensor, merged from the shards; on rank 0, elsewhere empty."""
    own = [
        tensor_digest(shard, offset_elements=item.parts[group.rank].start)
        for item, shard in zip(snapshot.layout, snapshot.shards, strict=True)
    ]
    # torch has no uint64 arithmetic; the signed sum wraps to the same 64 bits
    words = torch.tensor([_signed(digest) for digest in own], dtype=torch.int64)
    if group.rank != 0:
        group.send(words, 0)
        return []
    for rank in range(1, group.num_ranks):
        theirs = torch.empty_like(words)
        group.receive(theirs, rank)
        words += theirs
    return [int(word) % 2**64 for word in words]


def gather_bucket(
    snapshot: Snapshot, positions: Sequence[int], group: PointToPoint
) -> torch.Tensor | None:
    """The tensors at ``positions``, flattened and joined, on rank 0; None elsewhere."""
    own = torch.cat([snapshot.shards[position] for position in positions])
    if group.rank != 0:
        group.send(own, 0)
        return None
    if group.num_ranks == 1:
        return own
    bucket = [snapshot.layout[position] for position in positions]
    flat = torch.empty(sum(item.spec.num_elements for item in bucket), dtype=own.dtype)
    _place(flat, own, bucket, 0)
    for rank in range(1, group.num_ranks):
        theirs = torch.empty(sum(item.parts[rank].num_elements for item in bucket), dtype=own.dtype)
        group.receive(theirs, rank)
        _place(flat, theirs, bucket, rank)
    return flat


def bucket_positions(buckets: Iterable[Sequence[TensorSpec]]) -> Iterator[range]:
    """Where the tensors of each bucket stand in the layout."""
    start = 0
    for bucket in buckets:
        yield range(start, start + len(bucket))
        start += len(bucket)


def _place(
    flat: torch.Tensor, joined: torch.Tensor, bucket: Sequence[ShardedTensor], rank: int
) -> None:
    """Put the parts of one rank where they belong in the whole bucket."""
    tensor_start = part_start = 0
    for item in bucket:
        part = item.parts[rank]
        target = flat[tensor_start + part.start : tensor_start + part.stop]
        target.copy_(joined[part_start : part_start + part.num_elements])
        part_start += part.num_elements
        tensor_start += item.spec.num_elements


def _sharded(name: str, tensor: torch.Tensor, dtype: str, num_ranks: int) -> ShardedTensor:
    spec = TensorSpec(name=name, dtype=dtype, shape=tuple(tensor.shape), digest=_NO_DIGEST)
    if not isinstance(tensor, DTensor):
        whole = (Part(0, spec.num_elements), *[Part(0, 0)] * (num_ranks - 1))
        return ShardedTensor(spec, whole)
    if tuple(tensor.placements) != (Shard(0),):
        raise FatalError(
            f"published weights must be sharded along their first dimension over one mesh axis, "
            f"{name} has placements {tensor.placements} (shard the model with learner.model)"
        )
    return ShardedTensor(spec, row_parts(spec.shape, num_ranks))


def _copy(weight: torch.Tensor, shard: torch.Tensor) -> None:
    """Begin the copy of what this rank holds of ``weight``, if that is anything."""
    if shard.numel():
        shard.copy_(_local(weight.detach()).view(-1), non_blocking=True)


def _finish_copies() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
