"""One child of the pool and the jobs that it was sent, oldest first.

A child judges its jobs in order and answers each before it begins the next, so the oldest is the
one that a hang, a death or a limit is the fault of. The others go back to the queue: those behind a
slow one after :data:`PATIENCE_S` already, so that another child may take them. Sending ahead saves
the child the wait for its parent between two jobs, which for most rules is longer than the judging.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable

from actors.verification.job_queue import JobQueue, PendingJob
from actors.verification.judgement import JobReply, parse_reply
from actors.verification.killable_child import KillableChild
from common.errors import DecodeError, InfraError
from common.types import VerdictStatus

PATIENCE_S = 0.1
"""A job that takes longer is slow: what was sent behind it may be judged elsewhere."""

_MAX_TRIES = 2


class Lane:
    """Feeds one child from ``queue``; :meth:`run` returns when the queue is closed.

    ``jobs_ahead`` jobs are with the child at most. ``quarantine`` is told of a job that killed
    every child that tried it.
    """

    def __init__(
        self,
        child: KillableChild,
        queue: JobQueue,
        *,
        wall_limit_s: float,
        jobs_ahead: int,
        quarantine: Callable[[PendingJob], None],
    ) -> None:
        self.child = child
        self._queue = queue
        self._wall_limit_s = wall_limit_s
        self._jobs_ahead = jobs_ahead
        self._quarantine = quarantine
        self._sent: deque[PendingJob] = deque()
        self._shared: set[PendingJob] = set()
        self._oldest_since_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_over_limit = False
        self._is_stopped = False

    async def run(self) -> None:
        """Judge until there is no more to come."""
        while jobs := await self._queue.take(self._jobs_ahead):
            self._sent.extend(jobs)
            self._shared.clear()
            self._oldest_since_s = time.monotonic()
            try:
                await self._judge_sent()
            except Exception as error:  # whatever it is, jobs must not wait without end
                await self._give_up(error)
            if self.child.has_ended:
                await self._replace_child()

    def stop(self) -> None:
        """Kill the child and start no other."""
        self._is_stopped = True
        self.child.end()

    def abandon(self, job: PendingJob) -> None:
        """Nobody waits for ``job`` any more: a child that is busy with it is replaced."""
        if self._sent and self._sent[0] is job:
            self.child.end()

    async def _judge_sent(self) -> None:
        await self.child.ensure_started()
        if self._is_stopped:
            self.child.end()
        self.child.send([job.frame for job in self._sent])
        self._oldest_since_s = time.monotonic()
        self._watch()
        try:
            while self._sent:
                self._answer_oldest(await self.child.receive())
                if not self.child.has_ended and len(self._sent) <= self._jobs_ahead // 2:
                    self._send_more()
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _answer_oldest(self, frame: bytes) -> None:
        reply = parse_reply(frame, self._sent[0].num_checks)
        now = time.monotonic()
        self._sent.popleft().answer(reply, now - self._oldest_since_s)
        self._oldest_since_s = now
        if reply.failure is VerdictStatus.LIMIT_EXCEEDED:
            self.child.end()  # its heap is no longer what the next job was promised
            self._give_back()

    def _send_more(self) -> None:
        """A child that has died meanwhile is found out by the job that it owes a reply to."""
        if not self.child.takes_jobs:
            return
        if jobs := self._queue.take_nowait(self._jobs_ahead - len(self._sent)):
            self._sent.extend(jobs)
            self._shared.difference_update(jobs)  # what it shared may come back to it
            self.child.send([job.frame for job in jobs])

    def _watch(self) -> None:
        """The clock of the oldest job; called again when it could have run out."""
        age_s = time.monotonic() - self._oldest_since_s
        if self._sent and age_s >= self._wall_limit_s:
            self._is_over_limit = True
            self.child.end()
            return
        if age_s >= PATIENCE_S:
            self._share()
        due_s = self._wall_limit_s if age_s >= PATIENCE_S else min(PATIENCE_S, self._wall_limit_s)
        self._timer = asyncio.get_running_loop().call_later(due_s - age_s, self._watch)

    def _share(self) -> None:
        waiting = [job for job in list(self._sent)[1:] if job not in self._shared]
        self._shared.update(waiting)
        self._queue.put_back(waiting)

    def _give_back(self) -> None:
        """What the child has not begun; a shared job is in the queue, or with another child."""
        self._queue.put_back([job for job in self._sent if job not in self._shared])
        self._sent.clear()

    async def _give_up(self, error: Exception) -> None:
        """The child is of no more use: settle the oldest job, give the others back."""
        self.child.end()
        if not self._sent:
            return
        oldest = self._sent.popleft()
        self._give_back()
        if self._is_over_limit:
            self._is_over_limit = False
            reply = limit_exceeded(f"wall limit of {self._wall_limit_s:g} s exceeded")
            oldest.answer(reply, self._seconds())
        elif await self.child.reap() == -signal.SIGXCPU:
            oldest.answer(limit_exceeded("processor time limit exceeded"), self._seconds())
        else:
            self._try_again(oldest, error)

    def _try_again(self, job: PendingJob, error: Exception) -> None:
        """Once more on a fresh child; a job that killed that one too is set aside."""
        job.num_tries += 1
        job.num_deaths += isinstance(error, DecodeError) or getattr(error, "in_job", False)
        if job.is_done:
            return
        if job.num_tries < _MAX_TRIES:
            self._queue.put_back([job])
            return
        if job.num_deaths < _MAX_TRIES:
            job.answer(infra_error(str(error)), self._seconds())
            return
        self._quarantine(job)
        reason = f"{error}, {job.num_deaths} times: not tried again here"
        job.answer(infra_error(reason), self._seconds())

    def _seconds(self) -> float:
        return time.monotonic() - self._oldest_since_s

    async def _replace_child(self) -> None:
        await self.child.reap()
        if not self._is_stopped:
            with contextlib.suppress(
                OSError, InfraError
            ):  # the next job tries again and reports it
                await self.child.spawn()


def limit_exceeded(reason: str) -> JobReply:
    """The answer's own doing."""
    return JobReply(failure=VerdictStatus.LIMIT_EXCEEDED, reason=reason[:4096])


def infra_error(reason: str) -> JobReply:
    """The machinery's doing: no reward."""
    return JobReply(failure=VerdictStatus.INFRA_ERROR, reason=reason[:4096])
