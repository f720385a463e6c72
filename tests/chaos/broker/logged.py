"""A broker process whose log goes to a file: a pipe that nobody reads would stop it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.endpoints import read_endpoint
from tests.broker_process import REPOSITORY, BrokerProcess

_START_S = 60.0


@dataclass
class LoggedBroker(BrokerProcess):
    """Started anew for each life, imports included, as a supervisor does."""

    settings: Sequence[str] = field(default=())
    """More lines for the section ``[broker]``."""
    learner_settings: Sequence[str] = field(default=())
    """More lines for the section ``[learner]``; the last word on a key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        text = self.run_file.read_text()
        for section, lines in (("broker", self.settings), ("learner", self.learner_settings)):
            keys = tuple(line.split(" = ")[0] + " = " for line in lines)
            kept = [line for line in text.splitlines() if not keys or not line.startswith(keys)]
            text = "\n".join(kept).replace(f"[{section}]", "\n".join((f"[{section}]", *lines)))
        self.run_file.write_text(text)

    @property
    def log_file(self) -> Path:
        return self.folder / "broker.log"

    def start(self) -> None:
        with self.log_file.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "common.cli", "broker", str(self.run_file)],
                cwd=REPOSITORY,
                stdout=subprocess.DEVNULL,
                stderr=log,
                text=True,
                env={**os.environ, **self.environment},
            )

    def wait_endpoint(self) -> str:
        """Where the first life of this broker listens."""
        deadline_s = time.monotonic() + _START_S
        while not self.paths.endpoint_file.exists():
            if time.monotonic() > deadline_s:
                raise TimeoutError(
                    f"no broker after {_START_S:.0f} s:\n{self.log_file.read_text()}"
                )
            time.sleep(0.01)
        return read_endpoint(self.config, self.paths)()

    def memory_bytes(self, kind: str = "VmHWM") -> int:
        """A line of ``/proc/PID/status``: ``VmHWM`` is the most that was ever resident."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith(kind)]
        return int(line.split()[1]) * 1024
