"""Killable child processes with the clock on our side.

A thread or a signal cannot bound a verification: ``9**9**9`` holds the interpreter and no handler
ever runs. So every verification happens in a child process that the parent kills when the wall
clock says so, and replaces. A child that dies in mid-job costs one retry on a fresh one; when that
dies too the outcome is ``infra-error``, never a reward, and the job is not tried here again for a
while: it comes back from the broker until the dead letter ends it, and must not cost a child each
time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
from types import TracebackType

import msgspec

from actors.verification.child import ChildLimits
from actors.verification.judgement import JobReply, VerifyJob, parse_reply
from actors.verification.killable_child import ChildDiedError, KillableChild
from common.codec import MAX_STRING_BYTES, pack
from common.config import VerifierConfig
from common.errors import DecodeError, FatalError
from common.types import VerdictStatus

_ATTEMPTS = 2
QUARANTINE_S = 3600.0
"""A job that killed its children is not tried again here for so long."""


class QuarantinedJobs:
    """Jobs that killed their children, by hash: the latest ``capacity``, for ``seconds``."""

    def __init__(self, seconds: float = QUARANTINE_S, capacity: int = 4096) -> None:
        self._seconds = seconds
        self._capacity = capacity
        self._until: dict[bytes, float] = {}

    def add(self, frame: bytes, now: float) -> None:
        """Remember the job that ``frame`` encodes."""
        self._until.pop(_digest(frame), None)
        self._until[_digest(frame)] = now + self._seconds
        while len(self._until) > self._capacity:
            del self._until[next(iter(self._until))]

    def holds(self, frame: bytes, now: float) -> bool:
        """Whether the job is remembered; in order of time, so the oldest are forgotten first."""
        while self._until and self._until[oldest := next(iter(self._until))] <= now:
            del self._until[oldest]
        return bool(self._until) and _digest(frame) in self._until


class VerifierPool:
    """``num_workers`` child processes that judge one job each at a time.

    ``async with`` starts them and waits until all have imported their verifiers; leaving kills
    them. :meth:`judge` may be called from any number of tasks.
    """

    def __init__(self, limits: ChildLimits, num_workers: int) -> None:
        self._limits = limits
        self._children = [KillableChild(limits) for _ in range(num_workers)]
        self._idle: asyncio.LifoQueue[KillableChild] = asyncio.LifoQueue()
        self._replacing: set[asyncio.Task[None]] = set()
        self._quarantined = QuarantinedJobs()
        self.num_quarantined = 0

    @property
    def num_workers(self) -> int:
        """Jobs that are judged at the same time."""
        return len(self._children)

    @property
    def num_restarts(self) -> int:
        """Children that were given up and replaced."""
        return sum(child.num_ended for child in self._children)

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
        clock = asyncio.get_running_loop().time
        if self._quarantined.holds(frame, clock()):
            return _infra_error("this answer killed its verifier process before: not tried again")
        child = await self._idle.get()
        started_s = clock()
        try:
            reply = await self._judge_on(child, frame, len(job.checks))
            return msgspec.structs.replace(reply, seconds=clock() - started_s)
        finally:
            self._take_back(child)

    async def _judge_on(self, child: KillableChild, frame: bytes, num_checks: int) -> JobReply:
        reason, num_deaths = "", 0
        for _ in range(_ATTEMPTS):
            try:
                await child.ensure_started()
                async with asyncio.timeout(self._limits.wall_limit_s):
                    reply = parse_reply(await child.exchange(frame), num_checks)
            except TimeoutError:
                child.end()
                return _limit_exceeded(f"wall limit of {self._limits.wall_limit_s:g} s exceeded")
            except (ChildDiedError, DecodeError, OSError) as error:
                child.end()
                if await child.reap() == -signal.SIGXCPU:
                    return _limit_exceeded("processor time limit exceeded")
                num_deaths += isinstance(error, DecodeError) or getattr(error, "in_job", False)
                reason = str(error)
            except asyncio.CancelledError:
                child.end()
                raise
            else:
                if reply.failure is VerdictStatus.LIMIT_EXCEEDED:
                    child.end()  # its heap is no longer what the next job was promised
                return reply
        if num_deaths < _ATTEMPTS:
            return _infra_error(reason)
        self._quarantined.add(frame, asyncio.get_running_loop().time())
        self.num_quarantined += 1
        return _infra_error(f"{reason}, {num_deaths} times: not tried again here")

    def _take_back(self, child: KillableChild) -> None:
        """A child that was ended is replaced first; its job's answer need not wait for that."""
        if not child.has_ended:
            self._idle.put_nowait(child)
            return
        task = asyncio.create_task(self._replace(child), name="replace-child")
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self, child: KillableChild) -> None:
        await child.reap()
        with contextlib.suppress(OSError):  # the next job tries again and reports it
            await child.spawn()
        self._idle.put_nowait(child)

    async def _close(self) -> None:
        # waited for, not cancelled: a start that is given up half-way leaves a process behind
        await asyncio.gather(*self._replacing, return_exceptions=True)
        for child in self._children:
            child.end()
        await asyncio.gather(*(child.reap() for child in self._children))


def rule_pool(config: VerifierConfig) -> VerifierPool:
    """The pool that ``[verifier]`` describes."""
    limits = ChildLimits(config.wall_limit_s, config.memory_limit_bytes)
    return VerifierPool(limits, config.num_workers)


def _limit_exceeded(reason: str) -> JobReply:
    return JobReply(failure=VerdictStatus.LIMIT_EXCEEDED, reason=reason)


def _infra_error(reason: str) -> JobReply:
    return JobReply(failure=VerdictStatus.INFRA_ERROR, reason=reason)


def _digest(frame: bytes) -> bytes:
    return hashlib.blake2b(frame, digest_size=16).digest()


def _oversize(job: VerifyJob) -> JobReply | None:
    """A completion that no frame carries is the policy's doing: over the limit, not an error."""
    if len(job.completion.encode()) > MAX_STRING_BYTES:
        return _limit_exceeded(f"completion is over {MAX_STRING_BYTES} bytes")
    return None
