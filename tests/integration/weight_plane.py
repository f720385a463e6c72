"""A learner's end of the weight plane for tests: some tensors, written, announced and sent."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import structlog
import torch

from actors.generation.weight_agent import WeightAgent
from common.codec import Buffer, Decoded, unpack, unpack_manifest
from common.config import Config, ModelConfig, RunConfig, RunPaths, WeightsConfig
from common.errors import RequestTimeoutError
from common.messages import (
    Ack,
    Fleet,
    FleetMember,
    GetFleet,
    PublishWeights,
    Request,
    TransferGroup,
)
from common.metrics import Metrics
from common.torch.digest import describe_tensors
from common.torch.weight_files import write_version
from common.torch.weight_group import WeightGroup
from common.torch.weight_rendezvous import TransferGuest, TransferHost
from common.types import Role
from common.weight_layout import Canary, TensorSpec, WeightManifest, plan_buckets
from learner.models.mesh import Mesh, learner_mesh
from learner.publication.weight_publisher import WeightPublisher
from learner.publication.weight_sender import BrokerChannel
from tests.builders import version

RUN = "run"
WAIT_S = 20.0
NO_CANARY = Canary(token_ids=(), logprobs=(), tolerance=1e-3)
DEADLINE_S = 5.0
SMALL_BUCKET_BYTES = 4096
EXIT_BY_SOURCE = {"group": 10, "pull": 11}
LARGE_BUCKET_BYTES = 4096 << 12
"""More than the kernel buffers of a connection hold, so that a sender notices a dead receiver."""


def make_tensors(seed: int, num_rows: int = 16) -> dict[str, torch.Tensor]:
    """Four tensors in three buckets: of 4 KiB for 16 rows, of 16 MiB for 65536."""
    random = torch.Generator().manual_seed(seed)
    return {
        "embed": torch.randn(num_rows, 32, generator=random),
        "layer.up": torch.randn(num_rows, 64, generator=random),
        "layer.norm": torch.randn(16, generator=random),
        "head": torch.randn(num_rows, 32, generator=random),
    }


@dataclass(frozen=True, slots=True)
class Published:
    """One version: its tensors, its manifest, what was announced of it."""

    tensors: dict[str, torch.Tensor]
    manifest: WeightManifest
    announcement: PublishWeights
    bucket_bytes: int

    def buckets(self) -> Iterator[tuple[TensorSpec, ...]]:
        """The transfer buckets, in order."""
        return plan_buckets(self.manifest.tensors, self.bucket_bytes)

    def flat(self, bucket: Sequence[TensorSpec]) -> torch.Tensor:
        """The bytes of one bucket, as they are sent."""
        return torch.cat([self.tensors[spec.name].view(-1) for spec in bucket])


def published(
    root: Path, policy_step: int, transfer: TransferGroup | None, *, large: bool = False
) -> Published:
    """Write the version under ``root`` and announce it with ``transfer``."""
    at = version(policy_step)
    tensors = make_tensors(policy_step, num_rows=65536 if large else 16)
    manifest = WeightManifest(version=at, tensors=describe_tensors(tensors))
    directory = write_version(root, manifest, [tensor.view(-1) for tensor in tensors.values()])
    announcement = PublishWeights(
        version=at,
        manifest_digest=manifest.digest(),
        directory=str(directory),
        transfer=transfer,
    )
    bucket_bytes = LARGE_BUCKET_BYTES if large else SMALL_BUCKET_BYTES
    return Published(tensors, manifest, announcement, bucket_bytes)


def make_host(*, ready_window_s: float = 20.0) -> TransferHost:
    """A learner's end that waits for slow test machines."""
    return TransferHost(
        run_id=RUN,
        interface="127.0.0.1",
        deadline_s=DEADLINE_S,
        ready_window_s=ready_window_s,
    )


def make_agent(root: Path, name: str, *, bucket_bytes: int = SMALL_BUCKET_BYTES) -> WeightAgent:
    """An actor's end."""
    return WeightAgent(
        run_id=RUN,
        member=name,
        directory=root,
        bucket_bytes=bucket_bytes,
        deadline_s=DEADLINE_S,
    )


def fleet(*names: str) -> list[FleetMember]:
    """Live actors of these names."""
    return [
        FleetMember(
            role=Role.ACTOR, name=name, host="here", pid=1, silent_s=0.0, serving=version(0)
        )
        for name in names
    ]


def announce(host: TransferHost, *names: str) -> TransferGroup:
    """The group for these actors."""
    transfer = host.transfer_for(fleet(*names))
    if transfer is None:
        raise ValueError("a group needs members")
    return transfer


def send(group: WeightGroup, sent: Published) -> None:
    """Broadcast all buckets, as the learner does."""
    for bucket in sent.buckets():
        group.broadcast(sent.flat(bucket))


def same_tensors(staged: dict[str, torch.Tensor], sent: Published) -> bool:
    """Bit for bit."""
    return staged.keys() == sent.tensors.keys() and all(
        torch.equal(staged[name], tensor) for name, tensor in sent.tensors.items()
    )


class AnnouncementLog:
    """The publisher's channel: keeps announcements, and may keep silent or hold them up."""

    def __init__(self, members: Sequence[FleetMember] = ()) -> None:
        self.members = tuple(members)
        self.announced: list[PublishWeights] = []
        self.manifests: list[WeightManifest] = []
        self.num_silences = 0
        self.may_announce = threading.Event()
        self.may_announce.set()
        self.is_announcing = threading.Semaphore(0)
        self.on_announcement: Callable[[PublishWeights, WeightManifest], None] | None = None

    def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        if isinstance(message, GetFleet):
            return Decoded(0, Fleet(members=self.members), [])
        assert isinstance(message, PublishWeights)
        self.is_announcing.release()
        assert self.may_announce.wait(WAIT_S)
        if self.num_silences:
            self.num_silences -= 1
            raise RequestTimeoutError("the broker did not answer")
        manifest = unpack_manifest(frames[0])
        if self.on_announcement is not None:
            self.on_announcement(message, manifest)
        self.announced.append(message)
        self.manifests.append(manifest)
        return Decoded(0, Ack(), [])


def receive_in_process(
    begin: Barrier, root: str, name: str, announcement: bytes, manifest: bytes
) -> None:
    """Body of a surviving actor: ends with the exit code of what happened to it."""
    begin.wait(60.0)
    agent = make_agent(Path(root), name, bucket_bytes=LARGE_BUCKET_BYTES)
    staged = agent.receive(unpack(announcement, PublishWeights), unpack_manifest(manifest))
    sys.exit(EXIT_BY_SOURCE[staged.source])


def die_in_process(
    begin: Barrier, name: str, announcement: bytes, manifest: bytes, num_buckets: int
) -> None:
    """Body of an actor that is killed with -9 after it has received ``num_buckets`` buckets."""
    begin.wait(60.0)
    transfer = unpack(announcement, PublishWeights).transfer
    tensors = unpack_manifest(manifest)
    guest = TransferGuest(run_id=RUN, member=name, deadline_s=DEADLINE_S)
    group = guest.open(transfer, tensors.version)
    for bucket in list(plan_buckets(tensors.tensors, LARGE_BUCKET_BYTES))[:num_buckets]:
        group.broadcast(torch.empty(sum(spec.num_elements for spec in bucket)))
    os.kill(os.getpid(), signal.SIGKILL)


def make_publisher(config: Config, mesh: Mesh, channel: BrokerChannel) -> WeightPublisher:
    """The publisher of one rank."""
    paths = RunPaths(Path(config.run.directory))
    log = structlog.stdlib.get_logger("test")
    return WeightPublisher(config, paths, mesh, channel, Metrics(), log)


def publisher_config(root: Path) -> Config:
    """A run under ``root`` with small buckets that keeps two versions."""
    return Config(
        run=RunConfig(directory=str(root), id=RUN),
        model=ModelConfig(path="unused"),
        weights=WeightsConfig(
            bucket_bytes=SMALL_BUCKET_BYTES, deadline_s=DEADLINE_S, keep_versions=2
        ),
    )


def publish_as_rank(root: Path) -> None:
    """Body of one FSDP rank: publishes version 1, then 2, 3 and 4 while 1 is being announced."""
    from learner.models.model import load_policy

    log = AnnouncementLog()
    log.may_announce.clear()
    with learner_mesh() as mesh:
        policy = load_policy(root / "model", mesh, max_length=64)
        publisher = make_publisher(publisher_config(root), mesh, log)
        publisher.publish(version(1), policy, NO_CANARY)
        if mesh.is_main and not log.is_announcing.acquire(timeout=WAIT_S):
            sys.exit(1)
        for step in (2, 3, 4):
            add_one(policy)
            publisher.publish(version(step), policy, NO_CANARY)
        log.may_announce.set()
        publisher.wait_for_room()
        mesh.broadcast()
        publisher.close()
    if mesh.is_main and [item.version for item in log.announced] != [version(1), version(4)]:
        sys.exit(2)


@torch.no_grad()
def add_one(policy: torch.nn.Module) -> None:
    """Move every weight by one, shard by shard."""
    for parameter in policy.parameters():
        parameter.add_(1.0)
