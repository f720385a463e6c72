"""The queue between callers and children: order, shares, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from actors.verification.job_queue import JobQueue, PendingJob
from actors.verification.judgement import JobReply, Judgement


def _jobs(count: int, num_bytes: int = 10) -> list[PendingJob]:
    return [PendingJob(bytes([number]) * num_bytes, 1) for number in range(count)]


def _queue(jobs: Sequence[PendingJob], num_takers: int = 1) -> JobQueue:
    queue = JobQueue(num_takers)
    for job in jobs:
        queue.put(job)
    return queue


def test_jobs_come_in_order_and_those_put_back_come_first() -> None:
    async def run() -> None:
        jobs = _jobs(6)
        queue = _queue(jobs)
        first = await queue.take(4)
        assert first == jobs[:4]
        queue.put_back(first[1:])
        assert await queue.take(10) == jobs[1:]

    asyncio.run(run())


def test_no_lane_takes_more_than_its_share_while_others_have_none() -> None:
    async def run() -> None:
        queue = _queue(_jobs(6), num_takers=3)
        assert [len(queue.take_nowait(8)) for _ in range(4)] == [2, 2, 1, 1]

    asyncio.run(run())


def test_large_jobs_do_not_travel_together() -> None:
    async def run() -> None:
        queue = _queue(_jobs(3, num_bytes=200_000))
        assert [len(queue.take_nowait(8)) for _ in range(3)] == [1, 1, 1]

    asyncio.run(run())


def test_what_is_answered_or_given_up_is_not_judged_again() -> None:
    async def run() -> None:
        jobs = _jobs(4)
        queue = _queue(jobs)
        jobs[0].answer(JobReply(judgements=(Judgement.graded(1.0),)))
        jobs[2].reply.cancel()
        assert queue.take_nowait(8) == [jobs[1], jobs[3]]
        jobs[1].reply.cancel()
        queue.put_back([jobs[1], jobs[3]])
        assert queue.take_nowait(8) == [jobs[3]]

    asyncio.run(run())


def test_the_first_of_two_replies_counts() -> None:
    async def run() -> None:
        (job,) = _jobs(1)
        job.answer(JobReply(judgements=(Judgement.graded(1.0),)), seconds=2.0)
        job.answer(JobReply(judgements=(Judgement.graded(0.0),)), seconds=3.0)
        reply = await job.reply
        assert (reply.judgements[0].value, reply.seconds) == (1.0, 2.0)

    asyncio.run(run())


def test_a_waiting_lane_is_woken_by_a_job_and_by_the_end() -> None:
    async def run() -> None:
        queue = JobQueue(1)
        (job,) = _jobs(1)
        waiting = asyncio.create_task(queue.take(8))
        await asyncio.sleep(0)
        queue.put(job)
        assert await waiting == [job]
        waiting = asyncio.create_task(queue.take(8))
        await asyncio.sleep(0)
        assert queue.close() == []
        assert await waiting == []
        queue.put(job)
        assert await queue.take(8) == []

    asyncio.run(run())
