"""Starts brokers by fork from a process that has imported everything.

A broker takes a good part of a second to import; a thousand kills would be spent on that. Each life
is still a process of its own with its own sockets, files and threads, ended by a real SIGKILL.
One line of JSON asks for a life, one answers with its pid, one tells how it ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from common.config_loader import load_config
from tests.chaos.broker.knife import Cut, arm


@dataclass(frozen=True)
class Life:
    """One start of a broker; ``cut`` is where it kills itself, if it does."""

    run_file: str
    errors_file: str
    cut: Cut | None = None


class Zygote:
    """The parent of many brokers, one at a time."""

    def __init__(self, repository: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.broker.zygote"],
            cwd=repository,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, life: Life) -> int:
        """Begin a life; returns its pid."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(life)) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def wait(self) -> int:
        """Wait for the end of the life; returns its exit code, negative for a signal."""
        return int(self._answer())

    def close(self) -> None:
        """End the zygote; a life that is left dies with it."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the zygote ended")
        return line


def _live(life: Life) -> int:
    """Be a broker; returns the exit code."""
    from broker.main import run_broker
    from common.lifecycle import run_async_role

    descriptor = os.open(life.errors_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 2)
    os.dup2(descriptor, 1)
    if life.cut is not None:
        arm(life.cut)
    config = load_config(life.run_file)
    try:
        return run_async_role("broker", "broker", config, run_broker, metrics_port=0)
    except SystemExit as end:
        return int(end.code or 0)


def _serve() -> None:
    import broker.main  # noqa: F401  (imported once, here, for all lives)

    for line in sys.stdin:
        wish = json.loads(line)
        cut = wish.pop("cut")
        life = Life(**wish, cut=None if cut is None else Cut(**cut))
        pid = os.fork()
        if pid == 0:
            os._exit(_live(life))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve()
