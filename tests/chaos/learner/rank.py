"""One life of a learner: all its ranks, forked from a process that has imported everything.

A rank takes seconds to import; hundreds of kills would be spent on that. Each is still a process of
its own, put together as ``headrace learner`` does it, and ended by a real signal. One line of JSON
asks for a life, one answers with the pids, one tells how each rank ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from common.config import Config
from common.files import append_line
from common.lifecycle import Process
from common.types import WeightVersion
from common.weight_layout import Canary
from tests.chaos.learner.knife import Cut, arm
from tests.chaos.zygote import ZygotePipe

REPOSITORY = Path(__file__).parents[3]
RANK_TIMEOUT_S = 5.0
PEER_LIMIT_S = 10.0
"""A rank whose peer is dead or halted ends within that."""
CHECKPOINT_EVERY = 3
ENDLESS = 1_000_000


@dataclass(frozen=True)
class Life:
    """One start of a learner; ``cut`` is where a rank kills itself, if it does."""

    root: str
    world_size: int
    num_steps: int = ENDLESS
    cut: Cut | None = None


@dataclass(frozen=True)
class RankEnd:
    """How one rank ended: its exit code, negative for a signal, and when (monotonic)."""

    exit_code: int
    at_s: float
    had_joined: bool
    """It had met the others; before that it is torchrun that ends a rank whose peer died."""


class Zygote:
    """The parent of many learners, one at a time."""

    def __init__(self, model: Path) -> None:
        """The model of all runs is made in ``model``."""
        self.model = model
        self._pipe = ZygotePipe(
            "tests.chaos.learner.rank", str(model), cwd=REPOSITORY, env={"OMP_NUM_THREADS": "1"}
        )
        self._pipe.answer()

    def start(self, life: Life) -> list[int]:
        """Begin a life; returns the pids in the order of ranks."""
        pids: list[int] = json.loads(self._pipe.ask(asdict(life)))
        return pids

    def wait(self) -> list[RankEnd]:
        """Wait until every rank has ended."""
        return [RankEnd(**end) for end in json.loads(self._pipe.answer())]

    def close(self) -> None:
        """End the zygote, if it was not; ranks that are left die with it."""
        self._pipe.close()


class FilePublisher:
    """Appends the digest of everything published to a file."""

    def __init__(self, file: Path, mesh: object) -> None:
        self._file = file
        self._mesh = mesh

    def publish(self, version: WeightVersion, policy: object, canary: Canary) -> None:
        """One line a version."""
        from learner.checkpoints.digests import policy_digest

        digest = policy_digest(policy, self._mesh)  # type: ignore[arg-type]
        if self._mesh.is_main:  # type: ignore[attr-defined]
            append_line(self._file, json.dumps({"version": str(version), "digest": digest}))

    def wait_for_room(self) -> None:
        """There always is."""

    def close(self) -> None:
        """Nothing to end."""


def joined_file(root: Path, pid: int) -> Path:
    """There once the rank of that pid has met all others."""
    return root / f"joined-{pid}"


def run_config(root: Path, num_steps: int) -> Config:
    """A run of a few thousand parameters."""
    from tests.unit.learner.small_run import small_config

    return small_config(
        root,
        num_steps=num_steps,
        checkpoint_every=CHECKPOINT_EVERY,
        learning_rate=1e-3,
        rank_timeout_s=RANK_TIMEOUT_S,
    )


def _live(life: Life, rank: int, port: int) -> int:
    """Be one rank; returns the exit code."""
    from learner.batches.group_source import Ending
    from learner.main import run_learner
    from learner.models.mesh import Mesh
    from learner.train import train
    from tests.chaos.learner.remote_broker import RemoteBroker

    root = Path(life.root)
    log = os.open(root / "learner.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": life.world_size}
    os.environ.update({name: str(value) for name, value in ours.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if life.cut is not None and life.cut.rank == rank:
        arm(life.cut)

    def work(process: Process, mesh: Mesh) -> Ending:
        joined_file(root, os.getpid()).touch()
        publisher = FilePublisher(root / "published.jsonl", mesh)
        return train(process, RemoteBroker(root / "broker"), mesh, publisher)

    return run_learner(run_config(root, life.num_steps), "learner", work)


def _serve() -> None:
    import torch

    import learner.main  # noqa: F401  # as all ranks will
    from learner.models.model import load_policy
    from tests.unit.learner.small_run import ALONE, small_model

    torch.set_num_threads(1)
    load_policy(small_model(Path(sys.argv[1])), ALONE, max_length=64)  # imports what ranks will
    print("ready", flush=True)
    for line in sys.stdin:
        wish = json.loads(line)
        cut = wish.pop("cut")
        life = replace(Life(**wish), cut=None if cut is None else Cut(**cut))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        pids = [_fork(life, rank, port) for rank in range(life.world_size)]
        print(json.dumps(pids), flush=True)
        ends = _wait(Path(life.root), pids)
        print(json.dumps([asdict(end) for end in ends]), flush=True)


def _wait(root: Path, pids: list[int]) -> list[RankEnd]:
    """How each rank ends; as torchrun does, those that never met the dead one end with it.

    So does, later than any other may take to notice, a rank that was halted before they knew it.
    """
    ends: dict[int, RankEnd] = {}
    late: list[threading.Timer] = []
    while len(ends) < len(pids):
        pid, status = os.wait()
        code, joined = os.waitstatus_to_exitcode(status), joined_file(root, pid).exists()
        ends[pid] = RankEnd(code, time.monotonic(), joined)
        if code and not late:
            late.append(threading.Timer(PEER_LIMIT_S + 1.0, _kill_others, [pids, ends]))
            late[0].start()
        for other in pids if code else ():
            if other not in ends and not joined_file(root, other).exists():
                os.kill(other, signal.SIGKILL)
    for timer in late:
        timer.cancel()
    return [ends[pid] for pid in pids]


def _kill_others(pids: list[int], ends: dict[int, RankEnd]) -> None:
    for pid in pids:
        if pid not in ends:
            os.kill(pid, signal.SIGKILL)


def _fork(life: Life, rank: int, port: int) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = _live(life, rank, port)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


if __name__ == "__main__":
    _serve()
