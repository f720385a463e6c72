"""One rank of a learner that takes steps until it is stopped, on a broker behind a local socket.

Started by torchrun as ``-m tests.integration.stopped_rank FOLDER``. Where FOLDER has a file
``hold``, checkpoints are held up as by a disk that does not answer.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from common.lifecycle import Process
from learner.batches.group_source import Ending
from learner.checkpoints import checkpoint_writer
from learner.checkpoints.checkpoint_tensors import FileEntry, write_tensors
from learner.main import run_learner
from learner.models.mesh import Mesh
from learner.train import train
from tests.chaos.learner.rank import FilePublisher
from tests.chaos.learner.remote_broker import RemoteBroker
from tests.unit.learner.small_run import small_config


def main(folder: Path) -> int:
    """Train; the exit code is also left in ``exit-RANK``, because torchrun tells nobody."""

    def hold_up(path: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
        if (folder / "hold").exists():
            (folder / f"held-{os.environ['RANK']}").touch()
            threading.Event().wait()
        return write_tensors(path, tensors)

    def work(process: Process, mesh: Mesh) -> Ending:
        publisher = FilePublisher(folder / "published.jsonl", mesh)
        return train(process, RemoteBroker(folder / "broker"), mesh, publisher)

    vars(checkpoint_writer)["write_tensors"] = hold_up
    config = small_config(folder, num_steps=1_000_000, checkpoint_every=1_000_000)
    code = run_learner(config, "learner", work)
    (folder / f"exit-{os.environ['RANK']}").write_text(str(code))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
