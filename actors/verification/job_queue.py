"""Jobs that wait for a child process, oldest first, and the lanes that wait for jobs."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from actors.verification.judgement import JobReply

_MAX_BYTES_AT_ONCE = 1 << 18
"""Bounds what waits in the pipe of one child."""


@dataclass(slots=True, eq=False)
class PendingJob:
    """One job, the reply that its caller waits for, and what it has cost so far."""

    frame: bytes
    num_checks: int
    reply: asyncio.Future[JobReply] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    num_tries: int = 0
    num_deaths: int = 0

    @property
    def is_done(self) -> bool:
        """Answered, or nobody waits for it any more."""
        return self.reply.done()

    def answer(self, reply: JobReply, seconds: float = 0.0) -> None:
        """Give ``reply`` to the caller; the first one counts."""
        if not self.is_done:
            self.reply.set_result(msgspec.structs.replace(reply, seconds=seconds))


class JobQueue:
    """First in, first out, for ``num_takers`` lanes; of the idle ones the latest takes first."""

    def __init__(self, num_takers: int) -> None:
        self._num_takers = num_takers
        self._jobs: deque[PendingJob] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._is_closed = False

    def put(self, job: PendingJob) -> None:
        """Append ``job`` and wake one lane."""
        self._jobs.append(job)
        self._wake()

    def put_back(self, jobs: Sequence[PendingJob]) -> None:
        """These come first, in their order; those that are done are dropped."""
        for job in reversed(jobs):
            if not job.is_done:
                self._jobs.appendleft(job)
                self._wake()

    async def take(self, max_jobs: int) -> list[PendingJob]:
        """One job or more, none only when the queue is closed.

        Several where more jobs wait than there are lanes, so that no child is left without.
        """
        while not self._is_closed:
            if jobs := self.take_nowait(max_jobs):
                return jobs
            idle = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            await idle
        return []

    def take_nowait(self, max_jobs: int) -> list[PendingJob]:
        """As :meth:`take`, none when none waits."""
        fair = math.ceil(len(self._jobs) / self._num_takers)
        taken: list[PendingJob] = []
        num_bytes = 0
        while self._jobs and len(taken) < min(max_jobs, fair):
            num_bytes += len(self._jobs[0].frame)
            if taken and num_bytes > _MAX_BYTES_AT_ONCE:
                break
            job = self._jobs.popleft()
            if not job.is_done:
                taken.append(job)
        return taken

    def close(self) -> list[PendingJob]:
        """Wake every lane for good; returns the jobs that nobody will take."""
        self._is_closed = True
        while self._idle:
            self._wake()
        left, self._jobs = list(self._jobs), deque()
        return left

    def _wake(self) -> None:
        if self._idle:
            self._idle.pop().set_result(None)
