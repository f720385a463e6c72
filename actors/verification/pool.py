"""Killable child processes with the clock on our side.

A thread or a signal cannot bound a verification: ``9**9**9`` holds the interpreter and no handler
ever runs. So every verification happens in a child process that the parent kills when the wall
clock says so, and replaces (:mod:`actors.verification.lane`). A child that dies in mid-job costs
one retry on a fresh one; when that dies too the outcome is ``infra-error``, never a reward, and the
job is not tried here again for a while: it comes back from the broker until the dead letter ends
it, and must not cost a child each time.
"""

from __future__ import annotations

import asyncio
import hashlib
from types import TracebackType

from actors.verification.child import ChildLimits
from actors.verification.job_queue import JobQueue, PendingJob
from actors.verification.judgement import JobReply, VerifyJob
from actors.verification.killable_child import ChildDiedError, KillableChild
from actors.verification.lane import Lane, infra_error, limit_exceeded
from common.codec import MAX_STRING_BYTES, pack
from common.config import VerifierConfig
from common.errors import FatalError

_RULES_AHEAD = 8
"""Jobs that a child of the rules has at once: most take less time than their way to the child."""

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
    them. :meth:`judge` may be called from any number of tasks. Up to ``jobs_ahead`` jobs are with
    one child, in its pipe; a job that hangs or dies costs none of the others their verdict.
    """

    def __init__(self, limits: ChildLimits, num_workers: int, *, jobs_ahead: int = 1) -> None:
        self._limits = limits
        self._queue = JobQueue(num_workers)
        self._children = [KillableChild(limits) for _ in range(num_workers)]
        self._lanes = [
            Lane(
                child,
                self._queue,
                wall_limit_s=limits.wall_limit_s,
                jobs_ahead=jobs_ahead,
                quarantine=self._set_aside,
            )
            for child in self._children
        ]
        self._running: list[asyncio.Task[None]] = []
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
        self._running = [
            asyncio.create_task(lane.run(), name=f"verifier-lane-{index}")
            for index, lane in enumerate(self._lanes)
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    async def judge(self, job: VerifyJob) -> JobReply:
        """Have a child run ``job``; returns what came of it, never raises for its content."""
        oversize = _oversize(job)
        if oversize is not None:
            return oversize
        frame = pack(job)
        if self._quarantined.holds(frame, asyncio.get_running_loop().time()):
            return infra_error("this answer killed its verifier process before: not tried again")
        pending = PendingJob(frame, len(job.checks))
        self._queue.put(pending)
        try:
            return await pending.reply
        except asyncio.CancelledError:
            for lane in self._lanes:
                lane.abandon(pending)
            raise

    def _set_aside(self, job: PendingJob) -> None:
        self._quarantined.add(job.frame, asyncio.get_running_loop().time())
        self.num_quarantined += 1

    async def _close(self) -> None:
        for lane in self._lanes:
            lane.stop()
        for job in self._queue.close():
            job.answer(infra_error("the verifier is stopping"))
        # waited for, not cancelled: a start that is given up half-way leaves a process behind
        await asyncio.gather(*self._running, return_exceptions=True)
        for child in self._children:
            child.end()
        await asyncio.gather(*(child.reap() for child in self._children))


def rule_pool(config: VerifierConfig) -> VerifierPool:
    """The pool that ``[verifier]`` describes."""
    limits = ChildLimits(config.wall_limit_s, config.memory_limit_bytes)
    return VerifierPool(limits, config.num_workers, jobs_ahead=_RULES_AHEAD)


def _digest(frame: bytes) -> bytes:
    return hashlib.blake2b(frame, digest_size=16).digest()


def _oversize(job: VerifyJob) -> JobReply | None:
    """A completion that no frame carries is the policy's doing: over the limit, not an error."""
    if len(job.completion.encode()) > MAX_STRING_BYTES:
        return limit_exceeded(f"completion is over {MAX_STRING_BYTES} bytes")
    return None
