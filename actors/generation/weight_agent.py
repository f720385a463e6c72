"""Receives weights into host memory, proves them, never touches an engine (hop: learner -> actor).

The agent stands beside the engine: a transfer that breaks costs a staging buffer and nothing else.
Here it is an object on a thread of the actor; whatever else receives, proves and hands out
``StagedWeights``, for example a process per host, can take its place.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from common.errors import WeightTransferError
from common.messages import PublishWeights, TransferGroup
from common.torch.weight_files import check_digests, read_tensors
from common.torch.weight_rendezvous import TransferGuest
from common.types import WeightVersion
from common.weight_layout import TensorSpec, WeightManifest, plan_buckets

Source = Literal["group", "pull"]
NUM_STAGING_BUFFERS = 2
"""One is loaded into the engine while the next version arrives in the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedWeights:
    """A whole version in host memory, its digests proven against ``manifest``."""

    version: WeightVersion
    manifest: WeightManifest
    tensors: Mapping[str, torch.Tensor]
    source: Source
    transfer_s: float
    buffer: StagingBuffer


class WeightReceiver(Protocol):
    """What the actor needs from whatever receives its weights."""

    def receive(self, announcement: PublishWeights, manifest: WeightManifest) -> StagedWeights:
        """Bring the announced version into staging; raises :class:`WeightTransferError`."""
        ...

    def release(self, staged: StagedWeights) -> None:
        """Give the staging buffer back once the engine holds its own copy."""
        ...

    def close(self) -> None:
        """Drop all connections."""
        ...


class StagingBuffer:
    """Host memory for one version, laid out in transfer buckets; reused while the layout lasts."""

    def __init__(self) -> None:
        self._layout: object = None
        self.buckets: list[torch.Tensor] = []
        self.tensors: dict[str, torch.Tensor] = {}

    def prepare(self, specs: tuple[TensorSpec, ...], bucket_bytes: int) -> None:
        """Make room for tensors of these names, dtypes and shapes."""
        layout = (bucket_bytes, [(spec.name, spec.dtype, spec.shape) for spec in specs])
        if layout == self._layout:
            return
        self._layout, self.buckets, self.tensors = layout, [], {}
        for bucket in plan_buckets(specs, bucket_bytes):
            flat = torch.empty(
                sum(spec.num_elements for spec in bucket),
                dtype=getattr(torch, bucket[0].dtype),
                pin_memory=torch.cuda.is_available(),
            )
            self.buckets.append(flat)
            self.tensors.update(_views(flat, bucket))


class WeightAgent:
    """Receives by process group where one is announced, else pulls from the weights directory.

    A group transfer that breaks or arrives changed is thrown away and pulled; a pull that is bad
    too raises :class:`WeightTransferError`, and the engine goes on with what it serves. One thread
    at a time may call ``receive``; ``release`` may come from any.
    """

    def __init__(
        self,
        *,
        run_id: str,
        member: str,
        directory: Path,
        bucket_bytes: int,
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._guest = TransferGuest(run_id=run_id, member=member, deadline_s=deadline_s)
        self._member = member
        self._directory = directory
        self._bucket_bytes = bucket_bytes
        self._deadline_s = deadline_s
        self._clock = clock
        self._free: queue.SimpleQueue[StagingBuffer] = queue.SimpleQueue()
        for _ in range(NUM_STAGING_BUFFERS):
            self._free.put(StagingBuffer())
        self.last_group_error = ""

    def receive(self, announcement: PublishWeights, manifest: WeightManifest) -> StagedWeights:
        """Bring the announced version into a free staging buffer and prove its digests."""
        _check_manifest(announcement, manifest)
        began_s = self._clock()
        buffer = self._take_buffer()
        try:
            buffer.prepare(manifest.tensors, self._bucket_bytes)
            source = self._fill(buffer, announcement, manifest)
        except BaseException:
            self._free.put(buffer)
            raise
        return StagedWeights(
            version=manifest.version,
            manifest=manifest,
            tensors=buffer.tensors,
            source=source,
            transfer_s=self._clock() - began_s,
            buffer=buffer,
        )

    def release(self, staged: StagedWeights) -> None:
        """Give the staging buffer back."""
        self._free.put(staged.buffer)

    def close(self) -> None:
        """Drop all connections."""
        self._guest.close()

    def _fill(
        self, buffer: StagingBuffer, announcement: PublishWeights, manifest: WeightManifest
    ) -> Source:
        transfer = announcement.transfer
        self.last_group_error = ""
        if transfer is not None and self._member in transfer.members:
            try:
                self._receive_by_group(buffer, transfer, manifest)
                return "group"
            except WeightTransferError as error:
                self._guest.abandon()
                self.last_group_error = str(error)
        self._pull(buffer, manifest)
        return "pull"

    def _receive_by_group(
        self, buffer: StagingBuffer, transfer: TransferGroup, manifest: WeightManifest
    ) -> None:
        group = self._guest.open(transfer, manifest.version)
        for flat in buffer.buckets:
            arriving = flat if group.device == flat.device else flat.to(group.device)
            group.broadcast(arriving)
            if arriving is not flat:
                flat.copy_(arriving)
        check_digests(buffer.tensors, manifest)

    def _pull(self, buffer: StagingBuffer, manifest: WeightManifest) -> None:
        directory = self._directory / str(manifest.version)
        for spec, tensor in read_tensors(directory, manifest):
            buffer.tensors[spec.name].copy_(tensor)
        check_digests(buffer.tensors, manifest)

    def _take_buffer(self) -> StagingBuffer:
        try:
            return self._free.get(timeout=self._deadline_s)
        except queue.Empty:
            raise WeightTransferError(
                f"no staging buffer was free for {self._deadline_s:.1f} s: the engine has not "
                "finished its last load"
            ) from None


def _check_manifest(announcement: PublishWeights, manifest: WeightManifest) -> None:
    if manifest.version != announcement.version:
        raise WeightTransferError(
            f"the manifest of {announcement.version} describes {manifest.version}"
        )
    if manifest.digest() != announcement.manifest_digest:
        raise WeightTransferError(
            f"the manifest of {manifest.version} has digest {manifest.digest()}, announced was "
            f"{announcement.manifest_digest}"
        )


def _views(
    flat: torch.Tensor, bucket: tuple[TensorSpec, ...]
) -> Iterator[tuple[str, torch.Tensor]]:
    start = 0
    for spec in bucket:
        yield spec.name, flat[start : start + spec.num_elements].view(spec.shape)
        start += spec.num_elements
