"""Publishes weights behind the back of the training loop (hop: learner -> actor weights).

The loop leaves a snapshot and goes on. One background thread a rank, over a process group of its
own, gathers it to rank 0 bucket by bucket; rank 0 writes ``weights/<version>/``, announces it
through the broker and sends it to the actors that are there.

At most one publish is in flight and one snapshot waits; a newer snapshot replaces the waiting one.
Which one is replaced is agreed on at the step boundary (rank 0 says what its thread has begun), so
that all ranks publish the same versions in the same order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import structlog
import torch
import torch.distributed as dist

from common.config import Config, RunPaths
from common.errors import InfraError
from common.metrics import Metrics
from common.torch.digest import digest_text
from common.types import WeightVersion
from common.weight_layout import Canary, WeightManifest, plan_buckets
from learner.models.mesh import COLLECTIVE_TIMEOUT_S, Mesh
from learner.publication.weight_sender import BrokerChannel, WeightSender
from learner.publication.weight_snapshot import (
    PublishedWeights,
    Snapshot,
    SnapshotBuffer,
    bucket_positions,
    gather_bucket,
    gather_digests,
    take_snapshot,
)

_IDLE_S = 2.0
"""Rank 0 speaks this often to the other ranks' threads, so that none waits for ever."""
_CLOSE_S = 5.0
_NUM_BUFFERS = 3
"""One in flight, one waiting, one that this rank's thread has not quite finished."""
_IDLE, _PUBLISH, _STOP = 0, 1, 2


@dataclass(slots=True)
class _Waiting:
    """A snapshot and the memory that it lies in."""

    snapshot: Snapshot
    buffer: SnapshotBuffer


class BackgroundGroup:
    """The gloo group of the publishing threads; nothing else may use it."""

    def __init__(self, mesh: Mesh) -> None:
        self.rank = mesh.rank
        self.num_ranks = mesh.world_size
        self._group: Any = None
        if mesh.world_size > 1:
            timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    def send(self, tensor: torch.Tensor, rank: int) -> None:
        """Send a contiguous CPU tensor to ``rank``."""
        dist.send(tensor, dst=rank, group=self._group)

    def receive(self, tensor: torch.Tensor, rank: int) -> None:
        """Receive into a contiguous CPU tensor from ``rank``."""
        dist.recv(tensor, src=rank, group=self._group)

    def agree(self, *words: int) -> tuple[int, ...]:
        """Rank 0's ``words`` on every rank."""
        told = torch.tensor(words, dtype=torch.int64)
        if self.num_ranks > 1:
            dist.broadcast(told, src=0, group=self._group)
        return tuple(int(word) for word in told)


class WeightPublisher:
    """The :class:`learner.publication.publishing.Publisher` of one rank.

    ``channel`` is used on rank 0 only, from the publishing thread. An error of the thread is raised
    from the next call of the training loop.
    """

    def __init__(
        self,
        config: Config,
        paths: RunPaths,
        mesh: Mesh,
        channel: BrokerChannel,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._config = config
        self._mesh = mesh
        self._metrics = metrics
        self._log = log
        self._group = BackgroundGroup(mesh)
        self._sender: WeightSender | None = None
        if mesh.is_main:
            self._sender = WeightSender(config, paths.weights, channel, metrics, log)
        self._changed = threading.Condition()
        self._waiting: dict[WeightVersion, _Waiting] = {}
        self._begun: WeightVersion | None = None
        self._free = [SnapshotBuffer() for _ in range(_NUM_BUFFERS)]
        self._is_closing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="publish-weights", daemon=True)
        self._thread.start()

    def publish(self, version: WeightVersion, policy: PublishedWeights, canary: Canary) -> None:
        """Copy this rank's weights and return; a collective over all ranks.

        Raises what ended the publishing thread, if it has ended.
        """
        self._replace_waiting()
        buffer = self._take_buffer()
        snapshot = take_snapshot(
            policy,
            version,
            canary,
            dtype=self._config.model.dtype,
            rank=self._mesh.rank,
            num_ranks=self._mesh.world_size,
            buffer=buffer,
        )
        with self._changed:
            self._waiting[version] = _Waiting(snapshot, buffer)
            self._changed.notify_all()

    def wait_for_room(self) -> None:
        """Return once no snapshot waits, so that publication is at most one version behind.

        The publish in flight never waits for an actor, so this is bounded by disk and broker; an
        absent broker does not hold it up either, for a waiting snapshot replaces the one in flight.
        """
        self._wait(lambda: not self._waiting)

    def close(self) -> None:
        """Publish what still waits, as far as a few seconds allow, and end the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(_CLOSE_S)
        if self._sender is not None:
            self._sender.close()

    def _replace_waiting(self) -> None:
        """Drop the snapshots that no rank will publish; rank 0 knows which it has begun."""
        with self._changed:
            begun = msgspec.json.encode(self._begun) if self._mesh.is_main else b""
            if self._mesh.is_main:
                self._drop_all_but(self._begun)
        told = self._mesh.broadcast(begun)
        if not self._mesh.is_main:
            with self._changed:
                self._drop_all_but(msgspec.json.decode(told, type=WeightVersion | None))

    def _drop_all_but(self, begun: WeightVersion | None) -> None:
        for version in [version for version in self._waiting if version != begun]:
            self._free.append(self._waiting.pop(version).buffer)

    def _take_buffer(self) -> SnapshotBuffer:
        self._wait(lambda: bool(self._free))
        with self._changed:
            return self._free.pop()

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait on the publishing thread; raises what ended it, or ``InfraError`` when it hangs."""
        with self._changed:
            met = self._changed.wait_for(
                lambda: condition() or self._error is not None, COLLECTIVE_TIMEOUT_S
            )
            if self._error is not None:
                raise self._error
        if not met:
            raise InfraError(f"the weight publisher made no progress for {COLLECTIVE_TIMEOUT_S} s")

    def _run(self) -> None:
        try:
            while (version := self._next_version()) is not None:
                self._publish_one(version)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next_version(self) -> WeightVersion | None:
        """The version that rank 0 begins next, on every rank; None at the end."""
        while True:
            what, incarnation, policy_step = self._group.agree(*self._choose())
            if what == _STOP:
                return None
            if what == _PUBLISH:
                return WeightVersion(incarnation=incarnation, policy_step=policy_step)

    def _choose(self) -> tuple[int, int, int]:
        if not self._mesh.is_main:
            return (_IDLE, 0, 0)
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing, _IDLE_S)
            if not self._waiting:
                return (_STOP if self._is_closing else _IDLE, 0, 0)
            self._begun = max(self._waiting)
            return (_PUBLISH, self._begun.incarnation, self._begun.policy_step)

    def _publish_one(self, version: WeightVersion) -> None:
        waiting = self._take_waiting(version)
        snapshot = waiting.snapshot
        try:
            manifest, directory = self._gather(snapshot)
        finally:
            self._give_back(waiting.buffer)
        if self._sender is None or manifest is None or directory is None:
            return
        if self._sender.announce_and_send(manifest, directory, self._is_superseded):
            seconds = time.monotonic() - snapshot.taken_at_s
            self._metrics.observe("headrace_publish_seconds", seconds)
            self._log.info("weights published", version=str(version), publish_s=seconds)

    def _take_waiting(self, version: WeightVersion) -> _Waiting:
        """The snapshot that rank 0 has chosen; this rank may only just be taking it."""
        with self._changed:
            if not self._changed.wait_for(lambda: version in self._waiting, COLLECTIVE_TIMEOUT_S):
                raise InfraError(f"rank {self._mesh.rank} has no snapshot of {version}")
            waiting = self._waiting.pop(version)
            self._changed.notify_all()
            return waiting

    def _give_back(self, buffer: SnapshotBuffer) -> None:
        with self._changed:
            self._free.append(buffer)
            self._changed.notify_all()

    def _gather(self, snapshot: Snapshot) -> tuple[WeightManifest | None, Path | None]:
        """Bring the snapshot to disk; the other ranks send their parts and return nothing."""
        digests = gather_digests(snapshot, self._group)
        buckets = self._gather_buckets(snapshot)
        if self._sender is None:
            for _ in buckets:
                pass
            return None, None
        manifest = _manifest(snapshot, digests)
        return manifest, self._sender.write(manifest, buckets)

    def _gather_buckets(self, snapshot: Snapshot) -> Iterator[torch.Tensor]:
        specs = [item.spec for item in snapshot.layout]
        plan = plan_buckets(specs, self._config.weights.bucket_bytes)
        for positions in bucket_positions(plan):
            flat = gather_bucket(snapshot, positions, self._group)
            if flat is not None:
                yield flat

    def _is_superseded(self) -> bool:
        with self._changed:
            return self._is_closing or bool(self._waiting)


def _manifest(snapshot: Snapshot, digests: list[int]) -> WeightManifest:
    tensors = tuple(
        msgspec.structs.replace(item.spec, digest=digest_text(digest))
        for item, digest in zip(snapshot.layout, digests, strict=True)
    )
    return WeightManifest(version=snapshot.version, tensors=tensors, canary=snapshot.canary)
