"""Which job a lane holds to be at fault, against a child of a few lines that dies on cue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import cast

from actors.verification.job_queue import JobQueue, PendingJob
from actors.verification.judgement import JobReply, Judgement
from actors.verification.killable_child import ChildDiedError, KillableChild
from actors.verification.lane import Lane
from common.codec import pack
from common.types import VerdictStatus

_DEADLY = b"deadly"
_REPLY = pack(JobReply(judgements=(Judgement.graded(1.0),)))


class DyingChild:
    """Has judged and died before the lane reads its first reply."""

    def __init__(self) -> None:
        self.replies: deque[bytes] = deque()
        self.takes_jobs = True
        self.has_ended = False
        self.num_ended = 0

    async def ensure_started(self) -> None:
        """It is there at once."""

    async def spawn(self) -> None:
        """The next one."""
        self.replies.clear()
        self.takes_jobs, self.has_ended = True, False

    def send(self, frames: Sequence[bytes]) -> None:
        """Judge all up to the deadly one."""
        if not self.takes_jobs:
            raise ChildDiedError("the verifier process died while idle")
        for frame in frames:
            if frame == _DEADLY:
                self.takes_jobs = False
                return
            self.replies.append(_REPLY)

    async def receive(self) -> bytes:
        """The next reply, then the death."""
        if self.replies:
            return self.replies.popleft()
        raise ChildDiedError("the verifier process died in mid-job", in_job=True)

    def end(self) -> None:
        """Count it once."""
        self.num_ended += not self.has_ended
        self.has_ended = True

    async def reap(self) -> int | None:
        """Gone."""
        return -9


def test_a_child_that_dies_with_replies_unread_is_the_fault_of_the_job_it_owes_one_to() -> None:
    async def run() -> tuple[list[VerdictStatus | None], list[int], int]:
        queue, child, set_aside = JobQueue(1), DyingChild(), list[PendingJob]()
        lane = Lane(
            cast("KillableChild", child),
            queue,
            wall_limit_s=5.0,
            jobs_ahead=4,
            quarantine=set_aside.append,
        )
        jobs = [PendingJob(_DEADLY if place == 3 else b"right", 1) for place in range(12)]
        for job in jobs:
            queue.put(job)
        running = asyncio.create_task(lane.run())
        replies = await asyncio.gather(*(job.reply for job in jobs))
        lane.stop()
        queue.close()
        await running
        assert set_aside == [jobs[3]]
        return [r.failure for r in replies], [j.num_tries for j in jobs], child.num_ended

    failures, tries, num_ended = asyncio.run(run())
    assert failures == [VerdictStatus.INFRA_ERROR if place == 3 else None for place in range(12)]
    assert tries == [2 if place == 3 else 0 for place in range(12)]
    assert num_ended == 2 + 1  # twice by the job, once by the end of the test
