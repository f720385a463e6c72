"""Ranks of a learner with a bad batch.

``poison`` trains three steps, with a group that is not finite in the first; ``replay`` computes the
second of them again; ``corrupt`` has rank 1 hold another buffer.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from common.config import Config
from common.errors import FatalError
from learner.checkpoints.resume import start_or_resume
from learner.health.replica_check import compare_replicas
from learner.models.mesh import Mesh, learner_mesh
from learner.recorder.replay import replay
from learner.run_setup import build_run
from learner.train import take_step
from tests import ranks
from tests.unit.learner.fake_broker import FakeBroker, random_rollout, reward_of
from tests.unit.learner.small_run import (
    GROUP_SIZE,
    VOCAB_SIZE,
    RecordingPublisher,
    small_config,
    small_process,
    with_loss,
)

POISONED = 1
NUM_STEPS = 3
REPLAYED = 2


def run_ranks(root: Path, mode: str, world_size: int = 2) -> list[dict[str, object]]:
    """What each rank reports; raises when one fails."""
    ranks.run_ranks(main, root, mode, folder=root, world_size=world_size, timeout_s=110)
    return [json.loads((root / f"{mode}-{rank}.json").read_text()) for rank in range(world_size)]


def _config(root: Path) -> Config:
    return with_loss(small_config(root, num_steps=NUM_STEPS), advantage_std="none")


def _reward(group_id: int, index: int) -> float:
    return reward_of(group_id, index) * (1e38 if group_id == POISONED else 1.0)


def _poison(config: Config, mesh: Mesh) -> dict[str, object]:
    """Rank 0 alone talks to the broker about groups; each has one for its payloads."""
    broker = FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, reward=_reward)
    with small_process(config) as process:
        run = build_run(process, broker, mesh, RecordingPublisher())
        start_or_resume(run)
        digests = []
        for _ in range(NUM_STEPS):
            take_step(run)
            digests.append(run.digest())
        run.settle_checkpoint()
    stepped = [broker.stepped.get(step) for step in range(NUM_STEPS)]
    return {"digests": digests, "evicted": sorted(broker.evicted), "stepped": stepped}


def _replay(config: Config, mesh: Mesh) -> dict[str, object]:
    replayed = replay(config, mesh, REPLAYED)
    rollouts = {(row.group_id, row.index) for row in replayed.rows}
    return {
        "digest": replayed.weight_digest,
        "loss": replayed.loss,
        "sum": sum(row.loss or 0.0 for row in replayed.rows),
        "rollouts": len(rollouts),
    }


def _corrupt(config: Config, mesh: Mesh) -> dict[str, object]:
    broker = FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE)
    with small_process(config) as process:
        run = build_run(process, broker, mesh, RecordingPublisher())
        compare_replicas(run.policy, run.optimizer, mesh, 7)
        name, buffer = next(iter(run.policy.causal_lm.named_buffers()))
        if mesh.rank == 1:
            with torch.no_grad():
                buffer.view(-1)[0] += 1e-6
        try:
            compare_replicas(run.policy, run.optimizer, mesh, 7)
        except FatalError as error:
            return {"buffer": name, "error": str(error)}
    return {"buffer": name, "error": ""}


def main(root: Path, mode: str) -> None:
    """Do what ``mode`` says and leave a report."""
    with learner_mesh() as mesh:
        work = {"poison": _poison, "replay": _replay, "corrupt": _corrupt}[mode]
        report = work(_config(root), mesh)
        (root / f"{mode}-{mesh.rank}.json").write_text(json.dumps(report))
