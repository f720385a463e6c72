"""Reference log-probabilities from real verifiers, through a real broker, into a real learner."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w
import torch

from common.config_loader import load_config, run_paths
from common.endpoints import read_endpoint
from common.errors import RefusedError
from common.messages import (
    GetStatus,
    Heartbeat,
    LeasePrompts,
    PromptLeases,
    ReportWeights,
    Status,
    SubmitRollout,
    WatchWeights,
    WeightNotice,
)
from common.sync_channel import SyncChannel
from common.text_tokenizer import TextTokenizer
from common.transport import Channel
from common.types import (
    FinishReason,
    Role,
    RolloutHeader,
    RolloutId,
    VersionSpan,
    WeightVersion,
)
from learner.batches.group_source import Ending
from learner.checkpoints.resume import start_or_resume
from learner.checkpoints.step_record import read_step_record, record_path
from learner.publication.weight_publisher import WeightPublisher
from learner.run_setup import build_run
from learner.run_state import TrainingRun
from learner.train import finish, take_step
from tests.builders import version
from tests.unit.learner.fake_broker import random_rollout
from tests.unit.learner.small_run import ALONE, VOCAB_SIZE, small_model, small_process, weights_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

GROUP_SIZE = 4
NUM_STEPS = 3
SAMPLE = random_rollout(VOCAB_SIZE)
REWARD = """
import tempfile

def score(completion, *, prompt, reference):
    tempfile.mkdtemp(dir={calls!r}, prefix=completion.encode().hex() + "-")
    return float(len(completion) % 2)
"""
"""Its process may write no files, so it counts in directories."""


class Cluster:
    """A run directory with a broker and a verifier process, an actor thread and a learner."""

    def __init__(self, folder: Path, model: Path, reference: str, **learner: int) -> None:
        self._calls = folder / "calls"
        self._calls.mkdir()
        (folder / "reward.py").write_text(REWARD.format(calls=str(self._calls)))
        table = {
            "run": {"directory": "run", "id": "reference-test"},
            "model": {"path": str(model), "max_length": 64},
            "actor": {"max_tokens": 16},
            "prompts": {"generator": "chain-addition"},
            "broker": {"heartbeat_s": 0.2, "dead_after_s": 10.0},
            "verifier": {"rewards": [{"name": "length", "module": "reward.py:score"}]},
            "weights": {"transfer": "pull"},
            "learner": {
                "num_steps": NUM_STEPS,
                "groups_per_step": 1,
                "group_size": GROUP_SIZE,
                "learning_rate": 1e-3,
                "microbatch_tokens": 64,
                "checkpoint_every": 100,
                "reference": reference,
                "loss": {"kl_coefficient": 0.1},
                **learner,
            },
        }
        self.file = folder / "run.toml"
        self.file.write_text(tomli_w.dumps(table))
        self.config = load_config(self.file)
        self.paths = run_paths(self.config)
        self._folder = folder
        self._roles: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, role: str) -> None:
        """Start ``headrace ROLE``."""
        with open(self._folder / f"{role}.log", "ab") as log:
            self._roles[role] = subprocess.Popen(
                [sys.executable, "-m", "common.cli", role, str(self.file)], stdout=log, stderr=log
            )

    def kill(self, role: str) -> None:
        """Kill it with -9."""
        process = self._roles.pop(role)
        process.send_signal(signal.SIGKILL)
        process.wait(20)

    def stop(self) -> None:
        """End all that was started."""
        for process in self._roles.values():
            process.terminate()
        for process in self._roles.values():
            process.wait(20)

    def num_calls(self) -> Counter[str]:
        """How often the reward function saw each answer."""
        return Counter(path.name.partition("-")[0] for path in self._calls.iterdir())

    def answers(self) -> set[str]:
        """Every answer that is trained, as :meth:`num_calls` names it."""
        tokenizer = TextTokenizer.load(self.config.model.path)
        groups = [
            SAMPLE(*place) for place in itertools.product(range(NUM_STEPS), range(GROUP_SIZE))
        ]
        return {
            tokenizer.decode(item.completion_token_ids.tolist()).encode().hex() for item in groups
        }

    async def act(self, ended: threading.Event) -> None:
        """Answer prompts with fixed rollouts under the newest weights."""
        channel = await Channel.connect(
            role=Role.ACTOR, name="actor-0", endpoint=read_endpoint(self.config, self.paths)
        )
        serving: WeightVersion | None = None
        try:
            while not ended.is_set():
                serving = await _newest_weights(channel, serving)
                if serving is not None:
                    await _answer_prompts(channel, serving)
        except RefusedError as error:
            if error.code != "sealed":
                raise
        finally:
            await channel.close()


async def _newest_weights(channel: Channel, known: WeightVersion | None) -> WeightVersion | None:
    notice = (await channel.request(WatchWeights(known=known, wait_s=0.05))).message
    assert isinstance(notice, WeightNotice)
    if notice.announcement is None:
        return known
    serving = notice.announcement.version
    await channel.request(ReportWeights(version=serving, proven=True))
    return serving


async def _answer_prompts(channel: Channel, serving: WeightVersion) -> None:
    reply = (
        await channel.request(LeasePrompts(serving=serving, max_groups=1, wait_s=0.05))
    ).message
    assert isinstance(reply, PromptLeases)
    await channel.request(Heartbeat(leases=tuple(item.lease for item in reply.leases)))
    for lease in (item.lease for item in reply.leases):
        for index in lease.indices:
            arrays = SAMPLE(lease.group_id, index)
            header = RolloutHeader(
                rollout_id=RolloutId(group_id=lease.group_id, index=index, attempt=lease.attempt),
                num_prompt_tokens=len(arrays.prompt_token_ids),
                num_completion_tokens=len(arrays.completion_token_ids),
                finish_reason=FinishReason.STOP,
                temperature=1.0,
                version_spans=(VersionSpan(start=0, version=serving),),
                actor="actor-0",
            )
            await channel.request(SubmitRollout(rollout=header), arrays.frames())


@contextlib.contextmanager
def running(cluster: Cluster) -> Iterator[TrainingRun]:
    """A cluster at work, and its learner, which has published the initial weights."""
    ended = threading.Event()
    actor = threading.Thread(target=lambda: asyncio.run(cluster.act(ended)))
    cluster.start("broker")
    cluster.start("verifier")
    channel = SyncChannel.connect(
        role=Role.LEARNER,
        name="learner",
        endpoint=read_endpoint(cluster.config, cluster.paths),
    )
    try:
        with small_process(cluster.config) as process:
            publisher = WeightPublisher(
                cluster.config, cluster.paths, ALONE, channel, process.metrics, process.log
            )
            run = build_run(process, channel, ALONE, publisher)
            start_or_resume(run)
            run.source.references.tell()
            run.publish()
            actor.start()
            yield run
            publisher.close()
    finally:
        ended.set()
        if actor.is_alive():
            actor.join(20)
        channel.close()
        cluster.stop()


def _until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline_s, "it never came to that"
        threading.Event().wait(0.02)


def _train(run: TrainingRun) -> dict[str, torch.Tensor]:
    while run.policy_step < NUM_STEPS:
        assert take_step(run) is None
    finish(run, Ending.COMPLETED)
    return weights_of(run.policy)


def _status(run: TrainingRun) -> Status:
    status = run.channel.request(GetStatus()).message
    assert isinstance(status, Status)
    return status


def _assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def computed_by_the_learner(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, torch.Tensor]]:
    """Weights after all steps, by ``learner.reference_reset_every``."""
    found = {}
    for every in (0, 1):
        folder = tmp_path_factory.mktemp("learner")
        settings = {"max_policy_lag": NUM_STEPS - 1, "reference_reset_every": every}
        with running(Cluster(folder, model, "learner", **settings)) as run:
            found[every] = _train(run)
    return found


def test_verifiers_and_learner_train_the_same_weights(
    tmp_path: Path, model: Path, computed_by_the_learner: dict[int, dict[str, torch.Tensor]]
) -> None:
    cluster = Cluster(tmp_path, model, "verifier", max_policy_lag=NUM_STEPS - 1)
    with running(cluster) as run:
        assert run.reference is not None
        assert run.reference.model is None
        found = _train(run)
    _assert_close(found, computed_by_the_learner[0])
    assert {cluster.num_calls()[answer] for answer in cluster.answers()} == {1}


def test_a_reset_between_sampling_and_training_repeats_only_the_reference_pass(
    tmp_path: Path, model: Path, computed_by_the_learner: dict[int, dict[str, torch.Tensor]]
) -> None:
    """All groups are judged under the first reference; each step makes another."""
    settings = {"max_policy_lag": NUM_STEPS - 1, "reference_reset_every": 1}
    cluster = Cluster(tmp_path, model, "verifier", **settings)
    with running(cluster) as run:
        _until(lambda: cluster.answers() <= cluster.num_calls().keys())
        _until(lambda: _status(run).groups.pending == NUM_STEPS)
        cluster.kill("broker")  # what it has acknowledged outlives it, log-probabilities included
        cluster.start("broker")
        found = _train(run)
        steps = run.process.paths.step_records
        status = _status(run)
    records = [read_step_record(record_path(steps, step, 0)) for step in range(NUM_STEPS)]
    assert [record.reference_version for record in records] == [version(k) for k in range(3)]
    assert {cluster.num_calls()[answer] for answer in cluster.answers()} == {1}
    assert status.groups.trained == NUM_STEPS
    _assert_close(found, computed_by_the_learner[1])
    other = computed_by_the_learner[0]
    assert max((found[name] - other[name]).abs().max().item() for name in found) > 1e-4
