"""One child process: own process group, log file, life tied to ours."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_EXEC_WITH_PARENT = Path(__file__).with_name("exec_with_parent.py")
_ANY_PARENT = 0


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to start under which name."""

    name: str
    role: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    is_consumer: bool = False
    """The learner or collector: the run is finished when it ends with 0."""
    runs_under_torchrun: bool = False
    stop_s: float = 0.0
    """Seconds that it may need after SIGTERM, where that is more than others get."""


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Our environment, changed as every child needs it.

    Bytecode is always written: without it each start of an engine takes 30 s longer.
    """
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **extra}


def tied_to_parent(argv: tuple[str, ...], parent: int = _ANY_PARENT) -> tuple[str, ...]:
    """``argv``, changed so that the process is killed when its ``parent`` ends."""
    return (sys.executable, "-I", "-S", str(_EXEC_WITH_PARENT), str(parent), *argv)


class ChildProcess:
    """A running child; start it from the main thread, whose death the parent-death signal means."""

    def __init__(
        self,
        argv: tuple[str, ...],
        *,
        log_file: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with open(log_file, "ab") as log:
            self._popen = subprocess.Popen(
                tied_to_parent(argv, os.getpid()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environment(env or {}),
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """Process id, which is the process group id too."""
        return self._popen.pid

    def poll(self) -> int | None:
        """Exit code once it has ended (negative for a signal), else None.

        What is left of its process group is killed *before* the leader is reaped: until then the
        group's number cannot belong to anybody else.
        """
        if self._popen.returncode is not None:
            return self._popen.returncode
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if ended is None:
            return None
        self._signal_group(signal.SIGKILL)
        return self._popen.wait()

    def terminate(self) -> None:
        """Ask the process itself to end; it knows how to end its own children."""
        if self._popen.returncode is None:
            self._popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it now, with every descendant that we can see, and reap it."""
        if self._popen.returncode is not None:
            return
        descendants = _descendants(self.pid)
        self._signal_group(signal.SIGKILL)
        for process in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._popen.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
