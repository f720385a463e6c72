"""One slot of the pool: the child process that fills it, how to end it and how to get another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from actors.verification.child import LENGTH, MAX_FRAME_BYTES, ChildLimits
from common.errors import InfraError

START_LIMIT_S = 60.0
"""A child imports its verifiers within this time, on a machine that is busy loading models."""

_CHILD_ENV = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}
_KILL_LIMIT_S = 5.0


class ChildDiedError(InfraError):
    """A child ended, or spoke nonsense, before it answered; ``in_job``: while it had a job."""

    def __init__(self, message: str, *, in_job: bool = False) -> None:
        super().__init__(message)
        self.in_job = in_job


@dataclass(frozen=True, slots=True)
class _Running:
    """A live process and its two pipes."""

    process: asyncio.subprocess.Process
    jobs: asyncio.StreamWriter
    replies: asyncio.StreamReader


class KillableChild:
    """One slot of the pool: the process that fills it now, and how to get another."""

    def __init__(self, limits: ChildLimits) -> None:
        self._limits = limits
        self._running: _Running | None = None
        self._said_hello = False
        self._ended = False
        self.num_ended = 0

    @property
    def pid(self) -> int | None:
        """Process id, None while there is no process."""
        return None if self._running is None else self._running.process.pid

    async def ensure_started(self) -> None:
        """Wait until the process has imported its verifiers; start one where there is none."""
        running = self._running or await self.spawn()
        if self._said_hello:
            return
        try:
            async with asyncio.timeout(START_LIMIT_S):
                await _read_frame(running.replies, in_job=False)
        except TimeoutError:
            raise ChildDiedError(f"not ready within {START_LIMIT_S:g} s") from None
        self._said_hello = True

    @property
    def takes_jobs(self) -> bool:
        """False once its end of the pipe of jobs is closed; what it replied may still be unread."""
        return self._running is not None and not self._running.jobs.is_closing()

    def send(self, frames: Sequence[bytes]) -> None:
        """Send jobs, which are answered in order; raises :class:`ChildDiedError`.

        It does not wait until they are read: the child may wait for its replies to be read first.
        """
        if self._running is None:
            raise ChildDiedError("there is no verifier process")
        if not self.takes_jobs:  # uvloop raises an untyped error on such a write
            raise ChildDiedError("the verifier process died while idle")
        parts = [part for frame in frames for part in (LENGTH.pack(len(frame)), frame)]
        self._running.jobs.write(b"".join(parts))

    async def receive(self) -> bytes:
        """The bytes of the next reply; raises :class:`ChildDiedError`, also after :meth:`end`."""
        if self._running is None:
            raise ChildDiedError("there is no verifier process")
        return await _read_frame(self._running.replies, in_job=True)

    @property
    def has_ended(self) -> bool:
        """True from :meth:`end` until the next process is there."""
        return self._ended

    def end(self) -> None:
        """Kill the process and everything in its group, at once.

        A descendant that left the group may keep the pipe open: no reader waits for its end.
        """
        if self._running is None or self._ended:
            return
        self._ended = True
        self.num_ended += 1
        self._running.replies.set_exception(
            ChildDiedError("the verifier process was ended in mid-job", in_job=True)
        )
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running.process.pid, signal.SIGKILL)

    async def reap(self) -> int | None:
        """Wait for the end of an ended process; its exit status (negative: a signal) if known."""
        running, self._running, self._said_hello = self._running, None, False
        if running is None:
            return None
        if not running.jobs.is_closing():  # before the next one's pipe has the same descriptor
            running.jobs.transport.abort()
        try:
            async with asyncio.timeout(_KILL_LIMIT_S):
                return await running.process.wait()
        except TimeoutError:  # stuck in the kernel: it dies when it wakes, the pool goes on
            return None

    async def spawn(self) -> _Running:
        """Start a process, which imports while others work; raises ``OSError``."""
        process = await asyncio.create_subprocess_exec(
            *self._limits.argv(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_CHILD_ENV,
            cwd="/",
            start_new_session=True,
        )
        if process.stdin is None or process.stdout is None:
            raise ChildDiedError("the verifier process has no pipes")
        self._running = _Running(process, process.stdin, process.stdout)
        self._ended = False
        return self._running


async def _read_frame(stream: asyncio.StreamReader, *, in_job: bool) -> bytes:
    try:
        (size,) = LENGTH.unpack(await stream.readexactly(LENGTH.size))
        if size > MAX_FRAME_BYTES:
            message = f"the verifier process announced a reply of {size} bytes"
            raise ChildDiedError(message, in_job=in_job)
        return await stream.readexactly(size)
    except asyncio.IncompleteReadError:
        when = "in mid-job" if in_job else "while it started"
        raise ChildDiedError(f"the verifier process died {when}", in_job=in_job) from None
