"""One rank that waits for its peers in a collective; something happens to rank 1, or it stops.

Started by torchrun as ``-m tests.integration.watched_rank FOLDER halt|stop|absent|deadlock``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from learner.health.rank_watch import RankWatch, meeting_limit
from learner.models.mesh import learner_mesh

TIMEOUT_S = 3.0


def main(folder: Path, what: str) -> None:
    """End well only when rank 0 was asked to stop."""
    if what == "absent":
        (folder / "waits").touch()
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGSTOP)
    stopping = threading.Event()
    with ExitStack() as stack:
        with meeting_limit(TIMEOUT_S if what == "absent" else 60.0):
            mesh = stack.enter_context(learner_mesh())
        watch = RankWatch(
            mesh,
            timeout_s=TIMEOUT_S,
            stall_timeout_s=TIMEOUT_S,
            stacks=folder,
            is_stopping=stopping.is_set,
            stop=lambda _: stopping.set(),
        )
        stack.enter_context(watch)
        mesh.gather(b"all are here")
        if mesh.rank == 1:
            befall(what, stopping)
        else:
            wait(folder, what, stopping)
        mesh.gather(b"and leave together")


def befall(what: str, stopping: threading.Event) -> None:
    """What rank 1 does while rank 0 waits for it."""
    if what == "halt":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "deadlock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    stopping.set()


def wait(folder: Path, what: str, stopping: threading.Event) -> None:
    """Rank 0's part."""
    (folder / "waits").touch()
    if what == "stop" and not stopping.wait(60):
        sys.exit("rank 0 was never asked to stop")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
