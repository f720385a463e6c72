"""The ranks of one learner job: under torchrun several, started plainly one, same code for both.

Control bytes and metric sums travel over gloo also where gradients travel over NCCL, so that
planning never waits behind a kernel. Nothing here pickles: what ranks tell each other is bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from common.errors import ConfigError

COLLECTIVE_TIMEOUT_S = 600
"""The last resort: a rank that died or was stopped is noticed long before (``rank_watch``)."""


class RankStore(Protocol):
    """What ranks need of torch's store, whose host may be torchrun or rank 0."""

    def set(self, key: str, value: str, /) -> None:
        """Leave ``value`` for everybody."""
        ...

    def get(self, key: str, /) -> bytes:
        """What was left, once it is there."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Whether all of them were left."""
        ...

    def delete_key(self, key: str, /) -> bool:
        """Forget it."""
        ...

    def clone(self) -> RankStore:
        """Another connection: calls of one connection wait for each other."""
        ...


@dataclass(frozen=True)
class ContextGroup:
    """Ranks that compute the same microbatches together; see ``context_parallel``."""

    rank: int
    """Of this process in the group: which slice of the places it computes."""
    size: int
    process_group: dist.ProcessGroup


@dataclass(frozen=True)
class Mesh:
    """This process among the ranks."""

    rank: int
    world_size: int
    device: torch.device
    data_axis: DeviceMesh | None
    """All ranks, to shard over; None when one CPU rank needs no sharding."""
    store: RankStore | None = None
    """Where ranks leave each other words beside all collectives; None for a single rank."""
    context: ContextGroup | None = None
    """The neighbours that rows are split over; None where each rank has rows of its own."""

    @property
    def is_main(self) -> bool:
        """True on rank 0, which alone talks about the run as a whole."""
        return self.rank == 0

    @property
    def context_size(self) -> int:
        """Ranks that a row is split over."""
        return 1 if self.context is None else self.context.size

    @property
    def num_data_ranks(self) -> int:
        """Shares that the rollouts of a batch are divided into: one a context group."""
        return self.world_size // self.context_size

    @property
    def data_rank(self) -> int:
        """Which of these shares is this rank's; neighbours have the same one."""
        return self.rank // self.context_size

    def broadcast(self, payload: bytes = b"") -> bytes:
        """Rank 0's ``payload`` on every rank."""
        if self.world_size == 1:
            return payload
        size = torch.tensor([len(payload)], dtype=torch.int64)
        dist.broadcast(size, src=0)
        data = torch.zeros(int(size), dtype=torch.uint8)
        if self.is_main and payload:
            data = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        if len(data):
            dist.broadcast(data, src=0)
        return data.numpy().tobytes()

    def gather(self, payload: bytes) -> list[bytes]:
        """Everybody's ``payload``, on every rank, in rank order."""
        if self.world_size == 1:
            return [payload]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(payload)], dtype=torch.int64))
        longest = max(1, max(int(size) for size in sizes))
        padded = torch.zeros(longest, dtype=torch.uint8)
        if payload:
            padded[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return [
            part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)
        ]

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks of a CPU tensor; int64 wraps modulo 2**64."""
        if self.world_size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.SUM)
        return values

    def sum_over_data(self, values: Tensor) -> Tensor:
        """Sum over shares of a CPU tensor that all ranks of a context group have alike."""
        counts = self.context is None or self.context.rank == 0
        return self.sum(values if counts else torch.zeros_like(values))

    def gather_over_data(self, payload: bytes) -> list[bytes]:
        """One ``payload`` of each share, on every rank, in order."""
        return self.gather(payload)[:: self.context_size]

    def max(self, values: Tensor) -> Tensor:
        """Maximum over ranks of a CPU tensor."""
        if self.world_size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values


@contextmanager
def learner_mesh(context_parallel: int = 1) -> Iterator[Mesh]:
    """Join the ranks that torchrun started (RANK, WORLD_SIZE, MASTER_ADDR...), or be the only one.

    Each row is split over ``context_parallel`` neighbouring ranks. One CPU rank opens no process
    group at all: nothing to share, nothing to shard, no port. Raises :class:`ConfigError` where
    ``context_parallel`` does not divide the ranks.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size % context_parallel:
        raise ConfigError(
            f"learner.context_parallel must divide the ranks that torchrun started, got "
            f"{context_parallel} for {world_size} (start a multiple of {context_parallel} ranks, "
            "or use 1)"
        )
    rank = int(os.environ.get("RANK", "0"))
    device = _device(int(os.environ.get("LOCAL_RANK", "0")))
    if world_size == 1 and device.type == "cpu":
        yield Mesh(0, 1, device, None)
        return
    store = _init_process_group(rank, world_size, device)
    every_rank = init_device_mesh(device.type, (world_size,))
    context = context_group(world_size, context_parallel, device)
    yield Mesh(rank, world_size, device, every_rank, store, context)
    # Only after a good end: with a dead rank it would wait for that one.
    dist.destroy_process_group()


def context_group(world_size: int, size: int, device: torch.device) -> ContextGroup | None:
    """The neighbours of this rank: they are on one machine, where there are several."""
    if size == 1:
        return None
    shape = (world_size // size, size)
    axis = init_device_mesh(device.type, shape, mesh_dim_names=("data", "context"))["context"]
    return ContextGroup(axis.get_local_rank(), size, axis.get_group())


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _init_process_group(rank: int, world_size: int, device: torch.device) -> RankStore | None:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    if world_size == 1:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
        return None
    store, rank, world_size = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("groups", store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )
    return cast("RankStore", store).clone()
