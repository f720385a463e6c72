"""One rank of a PPO run under test: two batches of several updates, results written by rank 0."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from common.config import Config, CriticConfig
from learner.batches.chunk import Chunk
from learner.models.mesh import learner_mesh
from learner.run_setup import build_run
from learner.run_state import TrainingRun
from tests import ranks
from tests.unit.learner.small_run import (
    RecordingPublisher,
    small_broker,
    small_config,
    small_process,
    with_loss,
)

NUM_GROUPS = 3
NUM_STEPS = 2
"""The critic alone in the first of them."""


def run_ranks(root: Path, world_size: int) -> None:
    """Train on ``world_size`` ranks; raises when a rank fails."""
    ranks.run_ranks(main, root, folder=root, world_size=world_size, timeout_s=200)


def ppo_config(root: Path) -> Config:
    """Whitened advantages, a KL in the reward, two updates a batch."""
    critic = CriticConfig(learning_rate=1e-2, whiten=True, gae_lambda=0.9, warmup_steps=1)
    config = small_config(
        root,
        groups_per_step=NUM_GROUPS,
        learning_rate=1e-3,
        updates_per_batch=2,
        epochs_per_batch=2,
        critic=critic,
    )
    loss = {"baseline": "critic", "kl_coefficient": 0.05, "kl_in": "reward", "kl_estimator": "k1"}
    return with_loss(config, **loss)


def weights(run: TrainingRun) -> dict[str, Tensor]:
    """Whole copies of policy and critic; a collective."""
    found = {}
    for trainee, (model, _) in run.trainees.items():
        for name, weight in model.trained_weights():
            value = weight.detach()
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            found[f"{trainee}.{name}"] = whole.clone()
    return found


def main(root: Path) -> None:
    """Train, checkpoint, and say what was computed."""
    config = ppo_config(root)
    with learner_mesh() as mesh, small_process(config) as process:
        broker = small_broker(chunk_sizes=(1, 2))
        run = build_run(process, broker, mesh, RecordingPublisher())
        start, reports = weights(run), []
        for policy_step in range(NUM_STEPS):
            batch = run.updater.start_batch(policy_step)
            while len(batch.group_ids) < NUM_GROUPS:
                chunk = run.source.next_chunk(run.lineage, 0, held=batch.group_ids)
                assert isinstance(chunk, Chunk)
                run.updater.accumulate(batch, chunk)
            outcome = run.apply(batch)
            broker.handed_over.clear()
            reports.append(dataclasses.asdict(outcome))
        run.policy_step = broker.policy_step = NUM_STEPS
        run.checkpoint()
        final, digest = weights(run), run.digest()
        if mesh.is_main:
            save_file(start, root / "start.safetensors")
            save_file(final, root / "final.safetensors")
            (root / "report.json").write_text(json.dumps({"steps": reports, "digest": digest}))
