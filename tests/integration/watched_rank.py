"""One rank that waits for its peers in a collective; rank 1 halts itself, or asks itself to stop.

Started by torchrun as ``-m tests.integration.watched_rank FOLDER halt|stop``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from learner.mesh import learner_mesh
from learner.rank_watch import RankWatch

TIMEOUT_S = 3.0


def main(folder: Path, what: str) -> None:
    """End well only when rank 0 was asked to stop."""
    stopping = threading.Event()
    with (
        learner_mesh() as mesh,
        RankWatch(
            mesh,
            timeout_s=TIMEOUT_S,
            stacks=folder,
            is_stopping=stopping.is_set,
            stop=lambda _: stopping.set(),
        ),
    ):
        mesh.gather(b"all are here")
        if mesh.rank == 1:
            if what == "halt":
                os.kill(os.getpid(), signal.SIGSTOP)
            stopping.set()
        else:
            (folder / "waits").touch()
            if what == "stop" and not stopping.wait(60):
                sys.exit("rank 0 was never asked to stop")
        mesh.gather(b"and leave together")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
