"""The journal of a real broker is replaced by an older copy between two starts of a learner."""

from __future__ import annotations

import asyncio
import shutil
import string
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest

from common.codec import pack_manifest
from common.config import Config
from common.endpoints import read_endpoint
from common.errors import CheckpointError
from common.messages import PublishWeights
from common.sync_channel import SyncChannel
from common.types import Role, WeightVersion
from common.weight_layout import Canary, WeightManifest
from learner.checkpoints.checkpoint import read_state
from learner.checkpoints.step_record import read_step_record, record_path
from learner.models.model import PolicyModel
from learner.models.tiny_model import build_tiny_model
from learner.train import train
from tests.broker_process import BrokerProcess, run_actor, run_verifier
from tests.unit.learner.fake_broker import Killed
from tests.unit.learner.small_run import ALONE, SHAPE, small_config, small_process


@dataclass
class Announcer:
    """Announces versions without weights; the learner dies when it has announced ``last``."""

    channel: SyncChannel
    last: int
    announced: list[str] = field(default_factory=list)

    def publish(self, version: WeightVersion, policy: PolicyModel, canary: Canary) -> None:
        manifest = pack_manifest(WeightManifest(version=version, tensors=()))
        self.channel.request(PublishWeights(version=version, manifest_digest="0"), [manifest])
        self.announced.append(str(version))
        if version.policy_step == self.last:
            raise Killed

    def wait_for_room(self) -> None:
        """There always is."""

    def close(self) -> None:
        """Nothing to end."""


@contextmanager
def _workers(broker: BrokerProcess) -> Iterator[None]:
    """An actor and a verifier, in a thread."""
    loop = asyncio.new_event_loop()

    async def work() -> None:
        await asyncio.gather(run_actor(broker, "actor-0"), run_verifier(broker, "verifier-0"))

    task = loop.create_task(work())

    def run() -> None:
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


def _config(broker: BrokerProcess) -> Config:
    ours = small_config(broker.folder, groups_per_step=4, group_size=3, checkpoint_every=1)
    learner = replace(ours.learner, num_steps=broker.num_steps)
    return replace(ours, run=broker.config.run, learner=learner)


def _learn(broker: BrokerProcess, last: int) -> list[str]:
    """Start broker and learner, let the learner die with version ``last``; what it announced."""
    broker.start()
    try:
        endpoint = read_endpoint(broker.config, broker.paths)
        channel = SyncChannel.connect(
            role=Role.LEARNER, name="learner", endpoint=endpoint, timeout_s=30.0
        )
        announcer = Announcer(channel, last)
        try:
            with (
                _workers(broker),
                small_process(_config(broker)) as process,
                pytest.raises(Killed),
            ):
                train(process, channel, ALONE, announcer)
        finally:
            channel.close()
        return announcer.announced
    finally:
        broker.stop()


@pytest.mark.slow
def test_an_older_copy_of_the_journal_is_refused_and_the_newest_goes_on(tmp_path: Path) -> None:
    build_tiny_model(tmp_path / "model", [string.printable], SHAPE, seed=0)
    broker = BrokerProcess(tmp_path, dead_after_s=30.0)
    learner = tmp_path / "run/learner"
    assert _learn(broker, last=2) == ["0.0", "0.1", "0.2"]
    shutil.copytree(broker.paths.journal, tmp_path / "older")

    # the last step cannot be made again: the same steps are taken on another branch
    record = record_path(learner / "steps", 1, 0)
    forged = msgspec.structs.replace(read_step_record(record), weight_digest="0" * 16)
    record.write_bytes(msgspec.json.encode(forged))
    assert _learn(broker, last=3) == ["1.1", "1.2", "1.3"]
    known = read_state(learner / "checkpoints/00000002")
    assert (known.incarnation, known.policy_step) == (1, 2)

    shutil.rmtree(learner / "checkpoints/00000003", ignore_errors=True)
    shutil.copytree(broker.paths.journal, tmp_path / "newest")
    _replace(broker.paths.journal, tmp_path / "older")
    with pytest.raises(
        CheckpointError,
        match=rf"00000002: the journal must have the {known.num_journal_events} events .* "
        r"groups could be trained twice \(look at the journal with headrace journal check",
    ):
        _learn(broker, last=4)

    _replace(broker.paths.journal, tmp_path / "newest")
    assert _learn(broker, last=4) == ["1.3", "1.4"]


def _replace(journal: Path, copy: Path) -> None:
    shutil.rmtree(journal)
    shutil.copytree(copy, journal)
