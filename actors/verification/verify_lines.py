"""The stream shell of ``headrace verify``: one file descriptor in, one out, answers in order.

Reading, judging and writing go on at the same time, so a caller may send one line and wait for its
answer, or a million. Blocking reads and writes happen on threads: the loop keeps the clock of the
verifications.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import select
import stat
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from actors.verification.dispatch import Dispatcher
from actors.verification.json_lines import (
    BadLine,
    LineId,
    LineJob,
    LineSplitter,
    bad_line_verdict,
    parse_line,
    render_verdict,
)
from actors.verification.reward import compose_verdict
from actors.verification.verify_summary import Tally
from common.config import RewardWeight, VerifierConfig
from common.types import Verdict

_CHUNK_BYTES = 65536
_LINES_AHEAD_PER_CHILD = 32
"""Lines read ahead of the oldest unanswered one; bounds memory to so many times a line's cap."""

_Answer = tuple[LineId, Verdict]
_Answers = asyncio.Queue[asyncio.Task[_Answer] | None]


@dataclass(slots=True)
class LineRun:
    """One run over all lines of a stream, and what can be told of it so far."""

    kind: str
    """Kind of the task on every line."""
    terms: Sequence[RewardWeight]
    config: VerifierConfig
    on_progress: Callable[[LineRun], None] = lambda run: None
    """Called after every write."""
    tally: Tally = field(default_factory=Tally)
    bytes_read: int = 0
    num_restarts: int = 0
    notes: tuple[str, ...] = ()
    """What the backends say of how they work here."""


async def verify_lines(run: LineRun, *, source_fd: int, target_fd: int) -> None:
    """Answer every line of ``source_fd`` on ``target_fd``, in the order read, until it ends.

    Raises ``BrokenPipeError`` when nobody reads the answers any more, ``OSError`` when the source
    cannot be read.
    """
    answers: _Answers = asyncio.Queue(run.config.num_workers * _LINES_AHEAD_PER_CHILD)
    async with Dispatcher(run.config) as dispatcher:
        async with asyncio.TaskGroup() as group:
            group.create_task(_write_answers(run, answers, target_fd), name="write-answers")
            splitter = LineSplitter()
            async for chunk in _chunks(source_fd):
                run.bytes_read += len(chunk)
                for line in splitter.feed(chunk) if chunk else splitter.finish():
                    parsed = _parse(line, run)
                    await answers.put(group.create_task(_answer(parsed, run, dispatcher)))
            await answers.put(None)
        run.notes = dispatcher.notes


def _parse(line: bytes | None, run: LineRun) -> LineJob | BadLine:
    config = run.config
    return parse_line(line, run.kind, run.terms, config.extract, config.inside_thought)


async def _answer(parsed: LineJob | BadLine, run: LineRun, dispatcher: Dispatcher) -> _Answer:
    if isinstance(parsed, BadLine):
        return parsed.line_id, bad_line_verdict(parsed)
    reply = await dispatcher.judge(parsed.job)
    run.num_restarts = dispatcher.num_restarts
    return parsed.line_id, compose_verdict(run.terms, reply, parsed.token_ids)


class _Writer:
    """Writes to ``target_fd`` at once what a pipe or file takes without waiting, or on a thread.

    A pipe that is ready takes ``PIPE_BUF`` bytes (pipe(7)); a thread costs more than they do.
    """

    def __init__(self, target_fd: int) -> None:
        self._fd = target_fd
        mode = os.fstat(target_fd).st_mode
        self._tells = stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
        self._poll = select.poll()
        self._poll.register(target_fd, select.POLLOUT)

    async def write(self, data: bytes) -> None:
        """Returns when all is written; raises ``OSError`` when it cannot be."""
        view = memoryview(data)
        while view and self._tells and self._poll.poll(0):
            view = view[os.write(self._fd, view[: select.PIPE_BUF]) :]
        if view:
            await asyncio.to_thread(_write_all, self._fd, view)


async def _write_answers(run: LineRun, answers: _Answers, target_fd: int) -> None:
    """Write each answer as soon as those before it are written; finished ones share a write."""
    writer, ended = _Writer(target_fd), False
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
                await writer.write(bytes(ready))
                ready.clear()
            line_id, verdict = await task
            run.tally.add(verdict)
            ready += render_verdict(line_id, verdict)
        await writer.write(bytes(ready))
        run.on_progress(run)


async def _chunks(source_fd: int) -> AsyncIterator[bytes]:
    """Chunks as they arrive, an empty one at the end.

    The thread is a daemon, so an interrupted command does not wait for input that never comes.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | OSError] = asyncio.Queue(1)

    def read() -> None:
        chunk: bytes | OSError = b"-"
        while chunk and isinstance(chunk, bytes):
            try:
                chunk = os.read(source_fd, _CHUNK_BYTES)
            except OSError as error:
                chunk = error
            if loop.is_closed():
                return
            try:
                asyncio.run_coroutine_threadsafe(queue.put(chunk), loop).result()
            except concurrent.futures.CancelledError:  # the loop is ending
                return

    threading.Thread(target=read, name="read-lines", daemon=True).start()
    chunk: bytes | OSError = b"-"
    while chunk:
        chunk = await queue.get()
        if isinstance(chunk, OSError):
            raise chunk
        yield chunk


def _write_all(target_fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(target_fd, view) :]
