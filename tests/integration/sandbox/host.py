"""A judge in a thread of its own, and everything on this machine that a program must not touch."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import psutil

from actors.verification.code.judge import CodeJudge, CodeSettings
from actors.verification.judgement import Check, JobReply, Judgement, VerifyJob
from actors.verification.sandbox.limits import BoxJob, BoxLimits, BoxResult, Tier
from actors.verification.sandbox.sandbox import Sandbox

_Result = TypeVar("_Result")
_PATIENCE_S = 60.0

HONEST = {
    "function": "f",
    "tests": [{"args": [x], "expected": x + 1} for x in (1, 5, -3)],
}
HONEST_PROGRAM = "def f(x): return x + 1"


def completion_of(program: str, language: str = "python") -> str:
    """``program`` as a model would write it."""
    return f"<think>Let me see.</think>\n````{language}\n{program}\n````\n"


class Host:
    """Owns a judge; its methods may be called from tests without an event loop."""

    def __init__(self, limits: BoxLimits, tier: Tier, interpreter: str = "") -> None:
        self.sandbox = Sandbox(limits, 1, tier=tier, interpreter=interpreter)
        self.judge_ = CodeJudge(CodeSettings(limits), self.sandbox)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Host:
        self._thread.start()
        self.call(self.judge_.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.call(self.judge_.__aexit__(kind, error, traceback))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run ``work`` on the judge's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_S)

    def run(self, job: BoxJob, limits: BoxLimits | None = None) -> BoxResult:
        """One execution."""
        return self.call(self.sandbox.run(job, limits))

    def reply(self, program: str, reference: dict[str, Any]) -> JobReply:
        """What the judge says about ``program`` as a whole."""
        completion = completion_of(program, reference.get("language", "python"))
        check = Check(kind="code", reference_json=json.dumps(reference))
        return self.call(self.judge_.judge(VerifyJob(completion=completion, checks=(check,))))

    def judge(self, program: str, reference: dict[str, Any]) -> Judgement:
        """The judgement of ``program``."""
        (judgement,) = self.reply(program, reference).judgements
        return judgement

    def assert_next_honest_job_is_right(self) -> None:
        """The state in which every job must leave the judge."""
        judgement = self.judge(HONEST_PROGRAM, HONEST)
        assert (judgement.value, judgement.reason) == (1.0, "3 of 3 tests right")


@dataclass(frozen=True)
class Canaries:
    """Things outside that a program must neither reach nor change."""

    folder: Path
    process: subprocess.Popen[bytes]
    listener: socket.socket

    @property
    def secret(self) -> Path:
        """A file that everybody on this machine may read and write."""
        return self.folder / "secret"

    @property
    def port(self) -> int:
        """Where the listener listens."""
        port: int = self.listener.getsockname()[1]
        return port

    def assert_intact(self) -> None:
        """Nothing was reached."""
        assert self.process.poll() is None
        assert [path.name for path in self.folder.iterdir()] == ["secret"]
        assert hashlib.sha256(self.secret.read_bytes()).hexdigest() == _SECRET_DIGEST
        try:
            self.listener.accept()
        except BlockingIOError:
            return
        raise AssertionError("a program connected to the outside")


_SECRET = b"canary-8c1f"
_SECRET_DIGEST = hashlib.sha256(_SECRET).hexdigest()


@contextmanager
def canaries(folder: Path) -> Iterator[Canaries]:
    """Set them out below ``folder``."""
    folder.chmod(0o777)
    (folder / "secret").write_bytes(_SECRET)
    (folder / "secret").chmod(0o666)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        process = subprocess.Popen(["sleep", "1000"], env={"CANARY": "canary-8c1f", "PATH": "/bin"})
        stack.callback(process.wait)
        stack.callback(process.kill)
        yield Canaries(folder, process, listener)


@dataclass(frozen=True)
class Traces:
    """What a launcher and this process hold; equal before and after an execution."""

    launchers: list[int]
    num_restarts: int
    num_host_fds: int
    num_launcher_fds: int
    num_mounts: int
    num_processes: int
    temporary: list[str]

    @classmethod
    def of(cls, host: Host) -> Traces:
        """Count, after giving the kernel a moment to take apart what has ended."""
        (pid,) = host.sandbox.pids
        launcher = psutil.Process(pid)
        deadline_s = time.monotonic() + 1.0
        while launcher.children(recursive=True) and time.monotonic() < deadline_s:
            time.sleep(0.005)
        return cls(
            launchers=host.sandbox.pids,
            num_restarts=host.sandbox.num_restarts,
            num_host_fds=len(os.listdir("/proc/self/fd")),
            num_launcher_fds=launcher.num_fds(),
            num_mounts=len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()),
            num_processes=len(launcher.children(recursive=True)),
            temporary=sorted(
                name for name in os.listdir("/tmp") if name.startswith(("headrace-box", "planted"))
            ),
        )
