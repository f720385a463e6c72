"""A run that goes on with another number of ranks again and again, under test."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from common.lifecycle import Process
from learner.checkpoints.checkpoint import newest_checkpoint
from learner.checkpoints.checkpoint_tensors import named_tensors
from learner.main import run_learner
from learner.models.mesh import Mesh
from learner.run_setup import build_run
from learner.run_state import TrainingRun
from learner.train import take_step
from tests.ranks import run_ranks
from tests.unit.learner.small_run import RecordingPublisher, small_broker, small_config

CHAIN = (1, 2, 4, 1)


class SilentPublisher(RecordingPublisher):
    """Publishes nothing: a digest is a collective that it could only take alone."""

    def publish(self, *_: object) -> None:
        """Nobody asks for the weights."""


def run_chain(root: Path) -> None:
    """For each number of ranks restore the newest checkpoint, take a step and checkpoint."""
    for place, world_size in enumerate(CHAIN):
        run_ranks(main, root, place, folder=root, world_size=world_size, timeout_s=100)


def main(root: Path, place: int) -> None:
    """Be one rank; it writes what it holds to ``restored-PLACE``, then to ``saved-PLACE``."""

    def work(process: Process, mesh: Mesh) -> None:
        broker = small_broker()
        run = build_run(process, broker, mesh, SilentPublisher())
        newest = newest_checkpoint(process.paths.checkpoints)
        mesh.broadcast()  # all have looked before one writes
        if newest is not None:
            run.restore(newest)
        broker.policy_step = run.policy_step
        _write(run, root / f"restored-{place}.safetensors")
        take_step(run)
        run.checkpoint()
        _write(run, root / f"saved-{place}.safetensors")

    raise SystemExit(run_learner(small_config(root, checkpoint_every=100), "learner", work))


def _write(run: TrainingRun, file: Path) -> None:
    """Everything that a checkpoint holds, whole; a collective."""
    whole = {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()
        for name, tensor in named_tensors(run.trainees).items()
    }
    if run.mesh.is_main:
        save_file(whole, file)
