"""Starts brokers by fork from a process that has imported everything.

A broker takes a good part of a second to import; a thousand kills would be spent on that. Each life
is still a process of its own with its own sockets, files and threads, ended by a real SIGKILL.
One line of JSON asks for a life, one answers with its pid, one tells how it ended.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from common.config_loader import load_config
from tests.chaos.broker.knife import Cut, arm
from tests.chaos.zygote import ZygotePipe


@dataclass(frozen=True)
class Life:
    """One start of a broker; ``cut`` is where it kills itself, if it does."""

    run_file: str
    errors_file: str
    cut: Cut | None = None


class Zygote:
    """The parent of many brokers, one at a time."""

    def __init__(self, repository: Path) -> None:
        self._pipe = ZygotePipe("tests.chaos.broker.zygote", cwd=repository)

    def start(self, life: Life) -> int:
        """Begin a life; returns its pid."""
        return int(self._pipe.ask(asdict(life)))

    def wait(self) -> int:
        """Wait for the end of the life; returns its exit code, negative for a signal."""
        return int(self._pipe.answer())

    def close(self) -> None:
        """End the zygote; a life that is left dies with it."""
        self._pipe.close()


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
