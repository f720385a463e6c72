"""The publishing thread behind the training loop: what goes out is the snapshot, in order."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from common.config import Config
from common.errors import CheckpointError
from common.messages import FleetMember
from common.torch.weight_files import (
    check_digests,
    published_versions,
    read_manifest,
    read_tensors,
)
from common.types import WeightVersion
from common.weight_layout import Canary
from learner.models.mesh import Mesh
from learner.publication.weight_publisher import WeightPublisher
from tests.builders import version
from tests.integration.weight_plane import (
    WAIT_S,
    AnnouncementLog,
    fleet,
    make_agent,
    make_publisher,
    publish_as_rank,
    publisher_config,
)
from tests.ranks import run_ranks
from tests.tiny_models import make_tiny_qwen2

_CANARY = Canary(token_ids=((1, 2),), logprobs=((-0.5,),), tolerance=1e-3)


class Policy(torch.nn.Module):
    """A policy of two tensors in two buckets."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.embed = torch.nn.Parameter(torch.randn(32, 32, generator=random))
        self.norm = torch.nn.Parameter(torch.randn(8, generator=random))

    def published_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.named_parameters()

    @torch.no_grad()
    def train_step(self) -> None:
        for parameter in self.parameters():
            parameter.add_(1.0)

    def copy(self) -> dict[str, torch.Tensor]:
        return {name: item.detach().clone() for name, item in self.named_parameters()}


def _publisher(config: Config, broker: AnnouncementLog) -> WeightPublisher:
    mesh = Mesh(rank=0, world_size=1, device=torch.device("cpu"), data_axis=None)
    return make_publisher(config, mesh, broker)


def _published(root: Path, at: WeightVersion) -> dict[str, torch.Tensor]:
    directory = root / "weights" / str(at)
    manifest = read_manifest(directory)
    return {spec.name: tensor for spec, tensor in read_tensors(directory, manifest)}


def _same(tensors: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == others.keys() and all(
        torch.equal(tensors[name], others[name]) for name in tensors
    )


def test_what_is_published_is_the_snapshot_and_not_the_newer_weights(tmp_path: Path) -> None:
    broker, policy = AnnouncementLog(), Policy()
    broker.may_announce.clear()
    publisher = _publisher(publisher_config(tmp_path), broker)
    before = policy.copy()
    publisher.publish(version(1), policy, _CANARY)
    policy.train_step()
    broker.may_announce.set()
    publisher.close()
    assert _same(_published(tmp_path, version(1)), before)
    assert broker.announced[0].version == version(1)
    assert broker.announced[0].manifest_digest == broker.manifests[0].digest()
    assert broker.manifests[0].canary == _CANARY
    assert [spec.name for spec in broker.manifests[0].tensors] == ["embed", "norm"]


def test_a_newer_snapshot_replaces_the_one_that_waits(tmp_path: Path) -> None:
    broker, policy = AnnouncementLog(), Policy()
    broker.may_announce.clear()
    publisher = _publisher(publisher_config(tmp_path), broker)
    publisher.publish(version(1), policy, _CANARY)
    assert broker.is_announcing.acquire(timeout=WAIT_S)
    for step in (2, 3, 4):
        policy.train_step()
        publisher.publish(version(step), policy, _CANARY)
    newest = policy.copy()
    broker.may_announce.set()
    publisher.wait_for_room()
    publisher.close()
    assert [item.version for item in broker.announced] == [version(1), version(4)]
    assert _same(_published(tmp_path, version(4)), newest)
    assert published_versions(tmp_path / "weights") == [version(1), version(4)]


def test_only_the_last_versions_are_kept(tmp_path: Path) -> None:
    broker, policy = AnnouncementLog(), Policy()
    publisher = _publisher(publisher_config(tmp_path), broker)
    for step in range(4):
        publisher.publish(version(step), policy, _CANARY)
        publisher.wait_for_room()
    publisher.close()
    assert published_versions(tmp_path / "weights") == [version(2), version(3)]


def test_an_actor_that_serves_receives_by_group_the_snapshot_of_the_step(tmp_path: Path) -> None:
    broker, policy = AnnouncementLog(fleet("actor-0")), Policy()
    agent = make_agent(tmp_path / "weights", "actor-0")
    with ThreadPoolExecutor(1) as actor:
        received = []
        broker.on_announcement = lambda message, manifest: received.append(
            actor.submit(agent.receive, message, manifest)
        )
        publisher = _publisher(publisher_config(tmp_path), broker)
        snapshots = []
        for step in (1, 2):
            snapshots.append(policy.copy())
            publisher.publish(version(step), policy, _CANARY)
            policy.train_step()
            publisher.wait_for_room()
        publisher.close()
        for future, snapshot in zip(received, snapshots, strict=True):
            staged = future.result(WAIT_S)
            assert staged.source == "group"
            assert _same(dict(staged.tensors), snapshot)
    transfers = [item.transfer for item in broker.announced]
    assert transfers[0] is not None
    assert transfers[0] == transfers[1]


def test_an_actor_that_never_answers_does_not_hold_up_the_learner(tmp_path: Path) -> None:
    broker, policy = AnnouncementLog(fleet("gone")), Policy()
    publisher = _publisher(publisher_config(tmp_path), broker)
    for step in (1, 2):
        publisher.publish(version(step), policy, _CANARY)
        publisher.wait_for_room()
    publisher.close()
    assert [item.version for item in broker.announced] == [version(1), version(2)]


def test_actors_that_start_or_are_silent_are_not_invited(tmp_path: Path) -> None:
    serving, starting, silent = fleet("a", "b", "c")
    broker = AnnouncementLog([serving, _with(starting, serving=None), _with(silent, silent_s=60.0)])
    broker.may_announce.clear()
    publisher = _publisher(publisher_config(tmp_path), broker)
    publisher.publish(version(1), Policy(), _CANARY)
    broker.may_announce.set()
    publisher.wait_for_room()
    publisher.close()
    transfer = broker.announced[0].transfer
    assert transfer is not None
    assert transfer.members == ("a",)


def test_a_pull_only_run_announces_no_group(tmp_path: Path) -> None:
    config = publisher_config(tmp_path)
    config = replace(config, weights=replace(config.weights, transfer="pull"))
    broker = AnnouncementLog(fleet("a"))
    publisher = _publisher(config, broker)
    publisher.publish(version(1), Policy(), _CANARY)
    publisher.close()
    assert broker.announced[0].transfer is None
    assert broker.announced[0].directory == str(tmp_path / "weights" / "0.1")


def test_an_absent_broker_is_told_again_as_long_as_nothing_newer_waits(tmp_path: Path) -> None:
    broker = AnnouncementLog()
    broker.num_silences = 2
    publisher = _publisher(publisher_config(tmp_path), broker)
    publisher.publish(version(1), Policy(), _CANARY)
    for _ in range(3):
        assert broker.is_announcing.acquire(timeout=WAIT_S)
    publisher.close()
    assert [item.version for item in broker.announced] == [version(1)]


def test_a_version_used_twice_stops_the_training_loop_at_its_next_publish(tmp_path: Path) -> None:
    policy = Policy()
    first = _publisher(publisher_config(tmp_path), AnnouncementLog())
    first.publish(version(1), policy, _CANARY)
    first.close()
    policy.train_step()
    second = _publisher(publisher_config(tmp_path), AnnouncementLog())
    second.publish(version(1), policy, _CANARY)
    second._thread.join(WAIT_S)
    with pytest.raises(CheckpointError, match="never used twice"):
        second.publish(version(2), policy, _CANARY)
    second.close()


def _with(member: FleetMember, **changes: object) -> FleetMember:
    return msgspec.structs.replace(member, **changes)


@pytest.mark.slow
def test_two_ranks_publish_the_same_whole_tensors_and_drop_the_same_snapshot(
    tmp_path: Path,
) -> None:
    model = make_tiny_qwen2(tmp_path / "model", tied=True)
    run_ranks(publish_as_rank, tmp_path, folder=tmp_path, world_size=2, timeout_s=90.0)
    weights = {name: tensor.detach().float() for name, tensor in model.named_parameters()}
    assert published_versions(tmp_path / "weights") == [version(1), version(4)]
    assert _same(_published(tmp_path, version(1)), weights)
    moved = {name: tensor + 1.0 + 1.0 + 1.0 for name, tensor in weights.items()}
    assert _same(_published(tmp_path, version(4)), moved)
    manifest = read_manifest(tmp_path / "weights" / "0.4")
    check_digests(moved, manifest)
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert {spec.name for spec in manifest.tensors} == set(saved)
