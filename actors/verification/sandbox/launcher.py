"""The host's end of one launcher process: start it, hand it an execution, see it end on time.

Blocking, for a thread of its own: the launcher dies with the *thread* that started it.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from actors.verification.sandbox import zygote
from actors.verification.sandbox.cgroup import BoxCgroup, hierarchies
from actors.verification.sandbox.execution import Execution, LauncherDiedError
from actors.verification.sandbox.limits import BoxJob, BoxLimits, BoxResult, Tier
from common.errors import FatalError

ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/box",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
}
"""All that a program finds in its environment."""

START_LIMIT_S = 30.0
_CLEARING_LIMIT_S = 5.0
"""For a launcher without namespaces to end and delete what its programs have left."""
_FIRST_UID = 0x70000000
"""Above the ranges that distributions and container runtimes hand out."""
_UIDS_PER_PROCESS = 64
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from actors.verification.sandbox.zygote import main\n"
    "sys.path.remove(sys.argv[1]); main(sys.argv[2:])"
)
_PACKAGE_ROOT = str(Path(__file__).parents[3])

_numbers = itertools.count()


@dataclass(slots=True)
class _Running:
    """A live launcher."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    cgroup: BoxCgroup


class Launcher:
    """One launcher process and, behind it, one execution at a time."""

    def __init__(self, tier: Tier, limits: BoxLimits, interpreter: str = "") -> None:
        """``interpreter`` runs launcher and programs; by default the one that runs this."""
        self._tier = tier
        self._limits = limits
        self._interpreter = interpreter or os.path.realpath(sys.executable)
        self._running: _Running | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self.num_starts = 0

    @property
    def pid(self) -> int | None:
        """Process id of the launcher, None while there is none."""
        return None if self._running is None else self._running.process.pid

    @property
    def limits_memory_of_all(self) -> bool:
        """True where a control group bounds the memory of an execution's processes together."""
        return self._running is not None and self._running.cgroup.limits_memory

    @property
    def counts_cpu_of_all(self) -> bool:
        """True where a control group counts the processor time of all processes together."""
        return self._running is not None and self._running.cgroup.counts_cpu

    def start(self) -> None:
        """Start the process where there is none.

        Raises :class:`FatalError` with the reason when this tier does not work on this machine.
        """
        if self._running is None:
            self._running = self._spawn()
            self.num_starts += 1

    def run(
        self,
        job: BoxJob,
        *,
        limits: BoxLimits | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> BoxResult:
        """Execute ``job`` and return what came of it; a fresh launcher replaces one that died.

        ``limits`` may be below those of the launcher, whose groups keep the larger. Raises
        :class:`LauncherDiedError` when the launcher failed, which says nothing about the program.
        """
        self.start()
        running = self._running
        if running is None:
            raise LauncherDiedError("there is no launcher")
        try:
            return self._execute(running, job, limits or self._limits, is_cancelled)
        except (OSError, ValueError, LauncherDiedError) as error:
            self._end()
            raise LauncherDiedError(f"the sandbox launcher failed: {error}") from None

    def close(self) -> None:
        """End the launcher with everything in it, and remove what it had on this machine."""
        self._end()

    def _end(self) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        running.control.close()
        if self._tier is not Tier.NAMESPACES:  # nobody but the launcher finds what it has started
            with suppress(subprocess.TimeoutExpired):
                running.process.wait(_CLEARING_LIMIT_S)
        running.process.kill()
        running.process.wait()
        running.cgroup.close()
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def _spawn(self) -> _Running:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        cgroup = BoxCgroup(hierarchies(self._limits) if self._tier is not Tier.NONE else [])
        with theirs, tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(
                [*self._command(), "-c", _BOOTSTRAP, _PACKAGE_ROOT, self._settings(theirs, cgroup)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                env=ENVIRONMENT,
                cwd="/",
                pass_fds=(theirs.fileno(), *cgroup.procs_fds),
                start_new_session=True,
            )
            theirs.close()
            ours.settimeout(START_LIMIT_S)
            with suppress(OSError):
                if ours.recv(zygote.MAX_MESSAGE_BYTES) == b"ready":
                    return _Running(process, ours, cgroup)
            process.kill()
            process.wait()
            ours.close()
            cgroup.close()
            complaints.seek(0)
            last = complaints.read()[-2000:].decode("utf-8", "replace").strip().splitlines()[-1:]
        raise FatalError(f"a sandbox of tier {self._tier.value} cannot start: {''.join(last)}")

    def _command(self) -> list[str]:
        """The interpreter itself, without the packages of a virtual environment."""
        return [self._interpreter, "-s", "-P", "-S"]

    def _settings(self, control: socket.socket, cgroup: BoxCgroup) -> str:
        uid = _FIRST_UID + os.getpid() * _UIDS_PER_PROCESS + next(_numbers) % _UIDS_PER_PROCESS
        settings = {
            "parent_pid": os.getpid(),
            "control_fd": control.fileno(),
            "cgroup_fds": cgroup.procs_fds,
            "tier": self._tier.value,
            "uid": uid if os.geteuid() == 0 else None,
            "workdir": self._workdir(),
        }
        return json.dumps(settings)

    def _workdir(self) -> str:
        """Where programs live that have no file system of their own."""
        if self._tier is Tier.NAMESPACES:
            return ""
        self._scratch = tempfile.TemporaryDirectory(
            prefix="headrace-box-", ignore_cleanup_errors=True
        )
        Path(self._scratch.name).chmod(0o711)
        return str(Path(self._scratch.name, "box"))

    def _execute(
        self, running: _Running, job: BoxJob, limits: BoxLimits, is_cancelled: Callable[[], bool]
    ) -> BoxResult:
        oom_kills, cpu_s = running.cgroup.num_oom_kills(), running.cgroup.cpu_s()
        with Execution(running.control, job, limits) as execution:
            report = execution.follow(is_cancelled)
        report["cpu_s"] = max(report["cpu_s"], running.cgroup.cpu_s() - cpu_s)
        ran_out = running.cgroup.num_oom_kills() > oom_kills
        return execution.result(report, ran_out=ran_out)
