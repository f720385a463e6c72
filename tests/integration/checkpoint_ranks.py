"""A run that goes on with another number of ranks again and again, under test.

Started as ``python -m tests.integration.checkpoint_ranks ROOT``: for each number of ranks in
``CHAIN`` the ranks restore the newest checkpoint, write what they hold to ``restored-N``,
take a step, checkpoint, and write what they then hold to ``saved-N``.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
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
from tests.unit.learner.small_run import RecordingPublisher, small_broker, small_config

CHAIN = (1, 2, 4, 1)


class SilentPublisher(RecordingPublisher):
    """Publishes nothing: a digest is a collective that it could only take alone."""

    def publish(self, *_: object) -> None:
        """Nobody asks for the weights."""


def main(root: Path) -> None:
    """Go through the chain; every rank is a process forked from this one."""
    for place, world_size in enumerate(CHAIN):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        pids = [_fork(root, place, world_size, rank, port) for rank in range(world_size)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        if any(codes):
            sys.exit(f"{world_size} ranks ended with {codes}")


def _fork(root: Path, place: int, world_size: int, rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ours.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"

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

    code = 1
    try:
        code = run_learner(small_config(root, checkpoint_every=100), "learner", work)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _write(run: TrainingRun, file: Path) -> None:
    """Everything that a checkpoint holds, whole; a collective."""
    whole = {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()
        for name, tensor in named_tensors(run.trainees).items()
    }
    if run.mesh.is_main:
        save_file(whole, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
