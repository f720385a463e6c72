"""Client processes by the hundred, forked from one that has imported everything.

Each is a process of its own that a test can kill, stop and continue. ``python -m
tests.chaos.broker.nursery`` reads one wish a line and answers with a pid.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from common.errors import RefusedError
from common.lifecycle import die_with_parent
from common.transport import Channel
from common.types import Role
from tests.broker_process import REPOSITORY
from tests.chaos.broker.clients import Judge, Sampler
from tests.chaos.broker.diary import Diary

_REFUSED_EXIT = 7
_READY = "ready\n"


@dataclass(frozen=True)
class Wish:
    """One client process: what it is and where it notes what it was told."""

    kind: Literal["actor", "verifier"]
    name: str
    endpoint_file: str
    folder: str
    seed: int = 0
    think_s: float = 0.0


class Nursery:
    """The parent of client processes."""

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        """``prefix`` is a command that runs the rest of its line, for example in a namespace."""
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.chaos.broker.nursery"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._is_ready = False

    def start(self, wish: Wish) -> int:
        """Begin a client; returns its pid."""
        self.wait()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asdict(wish)) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> None:
        """Return once it takes wishes."""
        if not self._is_ready:
            assert self.process.stdout is not None
            assert self.process.stdout.readline() == _READY
            self._is_ready = True

    def close(self) -> None:
        """End all clients."""
        self.process.kill()
        self.process.communicate()


def signal_client(pid: int, number: signal.Signals) -> None:
    """Signal a client that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def _live(wish: Wish) -> None:
    async def connect(role: Role, name: str) -> Channel:
        endpoint = Path(wish.endpoint_file)
        return await Channel.connect(role=role, name=name, endpoint=endpoint.read_text)

    dice = random.Random(wish.seed)
    diary = Diary(Path(wish.folder) / f"{wish.name}.diary")
    if wish.kind == "actor":
        await Sampler(connect, wish.name, diary, dice, wish.think_s).run()
    else:
        await Judge(connect, wish.name, diary, dice, wish.think_s).run()


def _be(wish: Wish) -> int:
    die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(Path(wish.folder) / "clients.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        asyncio.run(_live(wish))
    except RefusedError as error:
        print(wish.name, error, flush=True)
        return _REFUSED_EXIT
    return 0


def _serve() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the dead
    print(_READY, end="", flush=True)
    for line in sys.stdin:
        wish = Wish(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            os._exit(_be(wish))
        print(pid, flush=True)


if __name__ == "__main__":
    _serve()
