"""Killable child processes with the clock on our side.

A thread or a signal cannot bound a verification: ``9**9**9`` holds the interpreter and no handler
ever runs. So every verification happens in a child process that the parent kills when the wall
clock says so, and replaces. A child that dies in mid-job costs one retry on a fresh one; when that
dies too the outcome is ``infra-error``, never a reward.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from types import TracebackType

import msgspec

from actors.verification.child import LENGTH, MAX_FRAME_BYTES, ChildLimits
from actors.verification.judgement import JobReply, VerifyJob, parse_reply
from common.codec import MAX_STRING_BYTES, pack
from common.errors import DecodeError, FatalError, InfraError
from common.types import VerdictStatus

START_LIMIT_S = 60.0
"""A child imports its verifiers within this time, on a machine that is busy loading models."""

_CHILD_ENV = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}
_ATTEMPTS = 2
_KILL_LIMIT_S = 5.0


class ChildDiedError(InfraError):
    """A child ended, or spoke nonsense, before it answered."""


class VerifierPool:
    """``num_workers`` child processes that judge one job each at a time.

    ``async with`` starts them and waits until all have imported their verifiers; leaving kills
    them. :meth:`judge` may be called from any number of tasks.
    """

    def __init__(self, limits: ChildLimits, num_workers: int) -> None:
        self._limits = limits
        self._children = [_Child(limits) for _ in range(num_workers)]
        self._idle: asyncio.LifoQueue[_Child] = asyncio.LifoQueue()

    @property
    def num_workers(self) -> int:
        """Jobs that are judged at the same time."""
        return len(self._children)

    @property
    def num_restarts(self) -> int:
        """Children that were replaced."""
        return sum(child.num_starts - 1 for child in self._children)

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that run now."""
        return [child.pid for child in self._children if child.pid is not None]

    async def __aenter__(self) -> VerifierPool:
        """Start all children; raises :class:`FatalError` when one cannot start."""
        try:
            await asyncio.gather(*(child.ensure_started() for child in self._children))
        except (ChildDiedError, OSError) as error:
            await self._close()
            raise FatalError(
                f"a verifier process cannot start: {error} "
                f"(is verifier.memory_limit_bytes = {self._limits.memory_limit_bytes} too low?)"
            ) from None
        except BaseException:
            await self._close()
            raise
        for child in self._children:
            self._idle.put_nowait(child)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    async def judge(self, job: VerifyJob) -> JobReply:
        """Run ``job`` on an idle child and return what came of it; never raises for its content."""
        oversize = _oversize(job)
        if oversize is not None:
            return oversize
        frame = pack(job)
        child = await self._idle.get()
        clock = asyncio.get_running_loop().time
        started_s = clock()
        try:
            reply = await self._judge_on(child, frame, len(job.checks))
            return msgspec.structs.replace(reply, seconds=clock() - started_s)
        finally:
            self._idle.put_nowait(child)

    async def _judge_on(self, child: _Child, frame: bytes, num_checks: int) -> JobReply:
        reason = ""
        for _ in range(_ATTEMPTS):
            try:
                await child.ensure_started()
                async with asyncio.timeout(self._limits.wall_limit_s):
                    reply = parse_reply(await child.exchange(frame), num_checks)
            except TimeoutError:
                await child.replace()
                return _limit_exceeded(f"wall limit of {self._limits.wall_limit_s:g} s exceeded")
            except (ChildDiedError, DecodeError, OSError) as error:
                ended_by = await child.replace()
                if ended_by == -signal.SIGXCPU:
                    return _limit_exceeded("processor time limit exceeded")
                reason = str(error)
            except asyncio.CancelledError:
                await child.replace()
                raise
            else:
                if reply.failure is VerdictStatus.LIMIT_EXCEEDED:
                    await child.replace()  # its heap is no longer what the next job was promised
                return reply
        return JobReply(failure=VerdictStatus.INFRA_ERROR, reason=reason)

    async def _close(self) -> None:
        await asyncio.gather(*(child.kill() for child in self._children))


@dataclass(frozen=True, slots=True)
class _Running:
    """A live process and its two pipes."""

    process: asyncio.subprocess.Process
    jobs: asyncio.StreamWriter
    replies: asyncio.StreamReader


class _Child:
    """One slot of the pool: the process that fills it now, and how to get another."""

    def __init__(self, limits: ChildLimits) -> None:
        self._limits = limits
        self._running: _Running | None = None
        self._said_hello = False
        self.num_starts = 0

    @property
    def pid(self) -> int | None:
        """Process id, None while there is no process."""
        return None if self._running is None else self._running.process.pid

    async def ensure_started(self) -> None:
        """Wait until the process has imported its verifiers; start one where there is none."""
        if self._running is None:
            self._running = await self._spawn()
        if self._said_hello:
            return
        try:
            async with asyncio.timeout(START_LIMIT_S):
                await _read_frame(self._running.replies)
        except TimeoutError:
            raise ChildDiedError(f"not ready within {START_LIMIT_S:g} s") from None
        self._said_hello = True

    async def exchange(self, frame: bytes) -> bytes:
        """Send one job and return the reply's bytes; raises :class:`ChildDiedError`."""
        if self._running is None:
            raise ChildDiedError("there is no verifier process")
        if self._running.jobs.is_closing():  # uvloop raises an untyped error on such a write
            raise ChildDiedError("the verifier process died while idle")
        self._running.jobs.write(LENGTH.pack(len(frame)) + frame)
        await self._running.jobs.drain()
        return await _read_frame(self._running.replies)

    async def replace(self) -> int | None:
        """Kill the process and start the next, which imports while others work.

        Returns the exit status of the old one (negative: the signal that ended it).
        """
        status = await self.kill()
        with contextlib.suppress(OSError):  # the next job tries again and reports it
            self._running = await self._spawn()
        return status

    async def kill(self) -> int | None:
        """End the process and everything in its group; returns its exit status if known."""
        running, self._running, self._said_hello = self._running, None, False
        if running is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        try:
            async with asyncio.timeout(_KILL_LIMIT_S):
                return await running.process.wait()
        except TimeoutError:  # stuck in the kernel: it dies when it wakes, the pool goes on
            return None

    async def _spawn(self) -> _Running:
        process = await asyncio.create_subprocess_exec(
            *self._limits.argv(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_CHILD_ENV,
            cwd="/",
            start_new_session=True,
        )
        self.num_starts += 1
        if process.stdin is None or process.stdout is None:
            raise ChildDiedError("the verifier process has no pipes")
        return _Running(process, process.stdin, process.stdout)


async def _read_frame(stream: asyncio.StreamReader) -> bytes:
    try:
        (size,) = LENGTH.unpack(await stream.readexactly(LENGTH.size))
        if size > MAX_FRAME_BYTES:
            raise ChildDiedError(f"the verifier process announced a reply of {size} bytes")
        return await stream.readexactly(size)
    except asyncio.IncompleteReadError:
        raise ChildDiedError("the verifier process died in mid-job") from None


def _limit_exceeded(reason: str) -> JobReply:
    return JobReply(failure=VerdictStatus.LIMIT_EXCEEDED, reason=reason)


def _oversize(job: VerifyJob) -> JobReply | None:
    """A completion that no frame carries is the policy's doing: over the limit, not an error."""
    if len(job.completion.encode()) > MAX_STRING_BYTES:
        return _limit_exceeded(f"completion is over {MAX_STRING_BYTES} bytes")
    return None
