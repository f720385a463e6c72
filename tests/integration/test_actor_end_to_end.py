"""A real broker, real actors and a real publisher: tokens come from the weights they name."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from common.arrays import RolloutArrays, split_frames
from common.config import Config
from common.config_loader import load_config, run_paths
from common.endpoints import read_endpoint
from common.messages import (
    Fleet,
    FleetMember,
    GetFleet,
    GetStatus,
    LeaseRollouts,
    ResumeLearner,
    RolloutLeases,
    Status,
)
from common.sync_channel import SyncChannel
from common.types import Role, RolloutHeader, WeightVersion
from learner.models.mesh import Mesh
from learner.publication.weight_publisher import WeightPublisher
from tests.builders import version
from tests.integration.weight_plane import make_publisher

REPOSITORY = Path(__file__).parents[2]
_WAIT_S = 60.0
_CONFIG = """
[run]
directory = "run"
[model]
path = "model"
max_length = 64
[prompts]
generator = "chain-addition"
[broker]
heartbeat_s = 0.2
[actor]
engine = "transformers"
max_tokens = 12
max_num_seqs = 16
[learner]
groups_per_step = 16
group_size = 4
max_policy_lag = 2
"""


@dataclass(slots=True)
class Run:
    """Broker and actors as processes; this process is the learner and the verifier."""

    root: Path
    config: Config
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, role: str, name: str) -> None:
        command = [sys.executable, "-m", "common.cli", role, str(self.root / "run.toml")]
        with open(self.root / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [*command, "--name", name],
                cwd=REPOSITORY,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def connect(self, role: Role, name: str) -> SyncChannel:
        endpoint = read_endpoint(self.config, run_paths(self.config))
        return SyncChannel.connect(role=role, name=name, endpoint=endpoint, timeout_s=_WAIT_S)

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    from learner.models.tiny_model import build_tiny_model

    build_tiny_model(tmp_path / "model", ["0123456789+="], seed=0)
    (tmp_path / "run.toml").write_text(_CONFIG)
    run = Run(tmp_path, load_config(tmp_path / "run.toml"))
    run.start("broker", "broker")
    try:
        yield run
    finally:
        run.stop()
        for log in sorted(tmp_path.glob("*.log")):
            print(log.name, log.read_text()[-2000:])


class Learner:
    """Publishes one model again and again and remembers every version."""

    def __init__(self, run: Run) -> None:
        from learner.models.model import load_policy

        self._mesh = Mesh(rank=0, world_size=1, device=torch.device("cpu"), data_axis=None)
        self.policy = load_policy(run.root / "model", self._mesh, max_length=64)
        self.channel = run.connect(Role.LEARNER, "learner")
        self.channel.request(ResumeLearner(incarnation=0, policy_step=0))
        self.publisher: WeightPublisher = make_publisher(run.config, self._mesh, self.channel)
        self.weights: dict[WeightVersion, dict[str, torch.Tensor]] = {}

    def publish(self, policy_step: int) -> None:
        from learner.publication.canary import compute_canary

        at = version(policy_step)
        self.weights[at] = {
            name: tensor.detach().clone() for name, tensor in self.policy.trained_weights()
        }
        canary = compute_canary(self.policy, self._mesh, tolerance=1e-3)
        self.publisher.publish(at, self.policy, canary)
        random = torch.Generator().manual_seed(policy_step)
        with torch.no_grad():
            for _, weight in self.policy.trained_weights():
                weight.add_(torch.randn(weight.shape, generator=random), alpha=0.02)

    @torch.no_grad()
    def logprobs(self, rollout: RolloutHeader, arrays: RolloutArrays) -> npt.NDArray[np.float32]:
        """Log-probabilities under the version that the rollout names."""
        for name, weight in self.policy.trained_weights():
            weight.copy_(self.weights[rollout.oldest_version][name])
        completion = torch.from_numpy(arrays.completion_token_ids.astype(np.int64))
        prompt = torch.from_numpy(arrays.prompt_token_ids.astype(np.int64))
        tokens = torch.cat([prompt, completion])[None]
        logits = self.policy.causal_lm(input_ids=tokens, use_cache=False).logits[0]
        logprobs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        chosen: npt.NDArray[np.float32] = logprobs.gather(-1, completion[:, None])[:, 0].numpy()
        return chosen

    def fleet(self) -> dict[str, FleetMember]:
        reply = self.channel.request(GetFleet()).message
        assert isinstance(reply, Fleet)
        return {member.name: member for member in reply.members}

    def status(self) -> Status:
        reply = self.channel.request(GetStatus()).message
        assert isinstance(reply, Status)
        return reply

    def until_serving(self, name: str, policy_step: int) -> None:
        def serves() -> bool:
            member = self.fleet().get(name)
            return member is not None and member.serving == version(policy_step)

        _until(serves, f"{name} serves 0.{policy_step}")

    def close(self) -> None:
        self.publisher.close()
        self.channel.close()


def _until(condition: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + _WAIT_S
    while not condition():
        if time.monotonic() > give_up_at:
            pytest.fail(f"not within {_WAIT_S} s: {what}")


def _lease_rollouts(
    channel: SyncChannel, max_rollouts: int
) -> list[tuple[RolloutHeader, RolloutArrays]]:
    decoded = channel.request(LeaseRollouts(max_rollouts=max_rollouts, wait_s=1.0))
    assert isinstance(decoded.message, RolloutLeases)
    headers = [lease.rollout for lease in decoded.message.leases]
    return list(zip(headers, split_frames(headers, decoded.frames), strict=True))


@pytest.mark.slow
def test_every_token_comes_from_the_weights_that_its_rollout_names(run: Run) -> None:
    run.start("actor", "actor-0")
    with (
        contextlib.closing(Learner(run)) as learner,
        contextlib.closing(run.connect(Role.VERIFIER, "verifier-0")) as verifier,
    ):
        sampled: dict[WeightVersion, list[tuple[RolloutHeader, RolloutArrays]]] = {}
        for step in (0, 1):
            learner.publish(step)
            learner.until_serving("actor-0", step)
            sampled[version(step)] = []
            while len(sampled[version(step)]) < 16:
                for header, arrays in _lease_rollouts(verifier, 32):
                    if header.oldest_version == header.newest_version:
                        sampled[header.oldest_version].append((header, arrays))
        differences = [
            np.abs(learner.logprobs(header, arrays) - arrays.behavior_logprobs).max()
            for rollouts in sampled.values()
            for header, arrays in rollouts
        ]
        assert max(differences) < 1e-4
        status = learner.status()
        assert (status.weight_syncs, status.weight_proofs_failed) == (2, 0)
        assert status.groups.imbalance == 0


@pytest.mark.slow
def test_a_killed_actor_comes_back_and_joins_a_transfer_and_a_stopped_one_ends_cleanly(
    run: Run,
) -> None:
    run.start("actor", "actor-0")
    with contextlib.closing(Learner(run)) as learner:
        learner.publish(0)
        learner.until_serving("actor-0", 0)
        run.processes["actor-0"].send_signal(signal.SIGKILL)
        run.processes["actor-0"].wait()
        learner.publish(1)
        run.start("actor", "actor-0")
        learner.until_serving("actor-0", 1)
        learner.publish(2)
        learner.until_serving("actor-0", 2)
        assert learner.status().weight_proofs_failed == 0
        run.processes["actor-0"].send_signal(signal.SIGTERM)
        assert run.processes["actor-0"].wait(_WAIT_S) == 0
        generating = {item.name: item.count for item in learner.status().waiting}
        assert generating.get("groups_generating", 0) == 0, "its leases wait again"
    assert not (run.root / "run" / "processes" / "actor-0.json").exists()
    log = (run.root / "actor-0.log").read_text()
    proofs = [line for line in log.splitlines() if "weights proven" in line]
    sources = ["pull" if '"source": "pull"' in line else "group" for line in proofs]
    assert sources == ["pull", "pull", "group"]
