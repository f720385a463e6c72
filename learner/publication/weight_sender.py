"""Rank 0's half of a publish: write, announce, send (hop: learner -> actor weights).

The files come first, so that whoever hears of a version can pull it. The transfer is an offer to
the actors that are there now; when it breaks, they pull, and the learner goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import structlog
import torch

from common.codec import Buffer, Decoded, pack_manifest
from common.config import Config
from common.errors import RequestTimeoutError, WeightTransferError
from common.messages import Fleet, FleetMember, GetFleet, PublishWeights, Request, TransferGroup
from common.metrics import Metrics
from common.torch.weight_files import flat_bucket, prune_versions, write_version
from common.torch.weight_rendezvous import TransferHost
from common.types import Role
from common.weight_layout import WeightManifest, plan_buckets

_SILENT_HEARTBEATS = 3


class BrokerChannel(Protocol):
    """The part of a ``SyncChannel`` that publishing needs."""

    def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        """As :meth:`common.sync_channel.SyncChannel.request`."""
        ...


class WeightSender:
    """Brings gathered weights to disk, to the broker and to the actors that are there."""

    def __init__(
        self,
        config: Config,
        root: Path,
        channel: BrokerChannel,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._config = config
        self._root = root
        self._channel = channel
        self._metrics = metrics
        self._log = log
        self._host: TransferHost | None = None
        if config.weights.transfer == "group":
            self._host = TransferHost(
                run_id=config.run.id,
                interface=config.weights.interface,
                deadline_s=config.weights.deadline_s,
                prefer_nccl=config.weights.backend == "nccl",
            )

    def write(self, manifest: WeightManifest, flat_buckets: Iterable[torch.Tensor]) -> Path:
        """Write the version, then drop what is older than ``weights.keep_versions``."""
        directory = write_version(self._root, manifest, flat_buckets)
        prune_versions(self._root, self._config.weights.keep_versions)
        return directory

    def announce_and_send(
        self, manifest: WeightManifest, directory: Path, is_superseded: Callable[[], bool]
    ) -> bool:
        """Tell the broker, then send to the live actors.

        A broker that does not answer is asked again until ``is_superseded``; False then.
        """
        transfer = self._transfer_for_fleet()
        announcement = PublishWeights(
            version=manifest.version,
            manifest_digest=manifest.digest(),
            directory=str(directory),
            transfer=transfer,
        )
        if not self._announce(announcement, manifest, is_superseded):
            return False
        if self._host is not None and transfer is not None:
            self._send(self._host, transfer, manifest, directory)
        return True

    def close(self) -> None:
        """Abort the transfer group."""
        if self._host is not None:
            self._host.close()

    def _announce(
        self,
        announcement: PublishWeights,
        manifest: WeightManifest,
        is_superseded: Callable[[], bool],
    ) -> bool:
        frame = pack_manifest(manifest)
        while True:
            try:
                self._channel.request(
                    announcement, [frame], timeout_s=self._config.weights.deadline_s
                )
                return True
            except RequestTimeoutError as error:
                self._log.warning(
                    "weights not announced", version=str(manifest.version), error=str(error)
                )
            if is_superseded():
                return False

    def _transfer_for_fleet(self) -> TransferGroup | None:
        if self._host is None:
            return None
        try:
            reply = self._channel.request(GetFleet(), timeout_s=self._config.weights.deadline_s)
        except RequestTimeoutError:
            return None
        members = reply.message.members if isinstance(reply.message, Fleet) else ()
        return self._host.transfer_for(self._receivers(members))

    def _receivers(self, members: Iterable[FleetMember]) -> list[FleetMember]:
        """Actors that serve and were heard of lately; one that still starts will pull."""
        longest_s = _SILENT_HEARTBEATS * self._config.broker.heartbeat_s
        return [
            member
            for member in members
            if member.role is Role.ACTOR
            and member.serving is not None
            and member.silent_s <= longest_s
        ]

    def _send(
        self,
        host: TransferHost,
        transfer: TransferGroup,
        manifest: WeightManifest,
        directory: Path,
    ) -> None:
        began_s = time.monotonic()
        try:
            group = host.open(transfer, manifest.version)
            for bucket in plan_buckets(manifest.tensors, self._config.weights.bucket_bytes):
                group.broadcast(flat_bucket(directory, bucket).to(group.device))
        except WeightTransferError as error:
            self._log.warning(
                "weight transfer broke off; actors pull",
                version=str(manifest.version),
                error=str(error),
            )
            return
        self._metrics.observe(
            "headrace_weight_transfer_seconds", time.monotonic() - began_s, source="send"
        )
