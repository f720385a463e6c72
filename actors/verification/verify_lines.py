"""The stream shell of ``headrace verify``: one file descriptor in, one out, answers in order.

Reading, judging and writing go on at the same time, so a caller may send one line and wait for its
answer, or a million. Blocking reads and writes happen on threads: the loop keeps the clock of the
verifications.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import AsyncIterator, Sequence

from actors.verification.child import ChildLimits
from actors.verification.json_lines import (
    BadLine,
    LineJob,
    LineSplitter,
    parse_line,
    render_bad_line,
    render_verdict,
)
from actors.verification.pool import VerifierPool
from actors.verification.reward import compose_verdict
from common.config import RewardWeight

_CHUNK_BYTES = 65536
_LINES_AHEAD_PER_CHILD = 32
"""Lines read ahead of the oldest unanswered one; bounds memory to so many times a line's cap."""

_Answers = asyncio.Queue[asyncio.Task[bytes] | None]


async def verify_lines(
    kind: str,
    rewards: Sequence[RewardWeight],
    limits: ChildLimits,
    num_workers: int,
    *,
    source_fd: int,
    target_fd: int,
) -> None:
    """Answer every line of ``source_fd`` on ``target_fd``, in the order read, until it ends.

    Raises ``BrokenPipeError`` when nobody reads the answers any more.
    """
    answers: _Answers = asyncio.Queue(num_workers * _LINES_AHEAD_PER_CHILD)
    async with VerifierPool(limits, num_workers) as pool, asyncio.TaskGroup() as group:
        group.create_task(_write_answers(answers, target_fd), name="write-answers")
        splitter = LineSplitter()
        async for chunk in _chunks(source_fd):
            for line in splitter.feed(chunk) if chunk else splitter.finish():
                parsed = parse_line(line, kind, rewards)
                await answers.put(group.create_task(_answer(parsed, rewards, pool)))
        await answers.put(None)


async def _answer(
    parsed: LineJob | BadLine, rewards: Sequence[RewardWeight], pool: VerifierPool
) -> bytes:
    if isinstance(parsed, BadLine):
        return render_bad_line(parsed)
    reply = await pool.judge(parsed.job)
    return render_verdict(parsed.line_id, compose_verdict(rewards, reply))


async def _write_answers(answers: _Answers, target_fd: int) -> None:
    """Write each answer as soon as those before it are written; finished ones share a write."""
    ended = False
    while not ended:
        batch = [await answers.get()]
        while not answers.empty():
            batch.append(answers.get_nowait())
        ready = bytearray()
        for task in batch:
            if task is None:
                ended = True
                continue
            if ready and not task.done():
                await asyncio.to_thread(_write_all, target_fd, bytes(ready))
                ready.clear()
            ready += await task
        await asyncio.to_thread(_write_all, target_fd, bytes(ready))


async def _chunks(source_fd: int) -> AsyncIterator[bytes]:
    """Chunks as they arrive, an empty one at the end.

    The thread is a daemon, so an interrupted command does not wait for input that never comes.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes] = asyncio.Queue(1)

    def read() -> None:
        chunk = b"-"
        while chunk:
            chunk = os.read(source_fd, _CHUNK_BYTES)
            if loop.is_closed():
                return
            try:
                asyncio.run_coroutine_threadsafe(queue.put(chunk), loop).result()
            except concurrent.futures.CancelledError:  # the loop is ending
                return

    threading.Thread(target=read, name="read-lines", daemon=True).start()
    chunk = b"-"
    while chunk:
        chunk = await queue.get()
        yield chunk


def _write_all(target_fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target_fd, view) :]
