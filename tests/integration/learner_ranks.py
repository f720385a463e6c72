"""One rank of a learner under test: a step on a fake broker, its results written by rank 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from learner.batches.chunk import Chunk
from learner.checkpoints.digests import policy_digest
from learner.models.mesh import learner_mesh
from learner.models.model import load_policy
from learner.models.reference import load_weights, save_weights
from learner.publication.canary import compute_canary
from learner.publication.export import gather_weights
from learner.run_setup import build_run
from learner.run_state import TrainingRun
from learner.step.training_batch import TrainingBatch
from tests import ranks
from tests.builders import version
from tests.unit.learner.small_run import (
    RecordingPublisher,
    small_broker,
    small_config,
    small_process,
    with_loss,
)

NUM_GROUPS = 5
CHUNK_SIZES = (1, 2)
"""A chunk of one group leaves a rank idle at times."""


def run_ranks(root: Path, world_size: int, **loss: object) -> None:
    """Take one step on ``world_size`` ranks with that objective; raises when a rank fails."""
    ranks.run_ranks(main, root, loss, folder=root, world_size=world_size, timeout_s=100)


def gather(run: TrainingRun) -> TrainingBatch:
    """A whole batch, accumulated."""
    batch = run.updater.start_batch(run.policy_step)
    while len(batch.group_ids) < NUM_GROUPS:
        chunk = run.source.next_chunk(run.lineage, run.policy_step, held=batch.group_ids)
        assert isinstance(chunk, Chunk)
        run.updater.accumulate(batch, chunk)
    return batch


def _whole_gradients(run: TrainingRun) -> dict[str, Tensor]:
    found = {}
    for name, weight in run.policy.trained_weights():
        assert weight.grad is not None
        gradient = weight.grad
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        found[name] = whole.clone()  # the step divides and clips in place
    return found


def main(root: Path, loss: dict[str, Any]) -> None:
    """Step once, save gradients, weights, canary and statistics, and checkpoint."""
    config = with_loss(small_config(root, groups_per_step=NUM_GROUPS), **loss)
    with learner_mesh() as mesh, small_process(config) as process:
        broker = small_broker(chunk_sizes=CHUNK_SIZES)
        run = build_run(process, broker, mesh, RecordingPublisher())
        batch = gather(run)
        gradients = {} if batch.waiting else _whole_gradients(run)  # none before the batch is whole
        outcome = run.apply(batch)
        canary = compute_canary(run.policy, mesh, tolerance=1e-3)
        run.policy_step = broker.policy_step = 1
        run.checkpoint()
        weights = gather_weights(
            run.policy.published_weights(), mesh, next(run.policy.parameters()).dtype
        )
        digest = run.digest()
        save_weights(process.paths.references, version(1), run.policy, mesh)
        reference = load_policy(Path(config.model.path), mesh, max_length=config.model.max_length)
        load_weights(process.paths.references, version(1), reference)
        reference_digest = policy_digest(reference, mesh)
        if mesh.is_main:
            save_file(gradients, root / "gradients.safetensors")
            save_file(weights, root / "weights.safetensors")
            report = {
                "loss": outcome.loss,
                "grad_norm": outcome.grad_norm,
                "sums": outcome.sums,
                "gap": outcome.on_policy_gap,
                "canary": canary.logprobs,
                "digest": digest,
                "reference_digest": reference_digest,
                "denominator": batch.denominator,
            }
            (root / "report.json").write_text(json.dumps(report))
