"""Many callers, one model process: a queue bounded by tokens, packed batches, deadlines.

What a caller wants is a :class:`Work`: a sequence and the places whose outputs it needs. Works that
wait are planned together, a window of a few batches at a time and oldest first, so that long ones
meet long ones and none is overtaken for ever. A crash or hang costs the batch that was being
computed; the others go to the next process. A batch for which the device has no memory is
halved until it fits, and only a sequence that does not fit alone goes without an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.verification.models.frames import ForwardReply, ModelSpec
from actors.verification.models.model_process import ModelProcess, ModelProcessError
from actors.verification.models.token_room import TokenRoom
from actors.verification.models.work import BuiltBatch, RunnerLimits, Work, build_batches
from common.arrays import Float32Array

WINDOW_BATCHES = 4
"""Batches' worth of waiting work that is planned together."""
MAX_UNDER_WAY = 2
"""One batch is computed while the next is read and laid out."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """What one batch came to, for metrics."""

    model: str
    num_sequences: int
    num_tokens: int
    """Tokens computed, each shared prefix once."""
    num_places: int
    """Tokens and padding."""
    seconds: float
    """From hand-over to answer."""
    compute_s: float
    weight_bytes: int
    failure: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    work: Work
    outputs: asyncio.Future[Float32Array]


@dataclass(frozen=True, slots=True)
class _Batch:
    works: tuple[_Waiting, ...]
    """In the order of their places."""
    built: BuiltBatch
    started_s: float = 0.0


class ModelRunner:
    """``async with`` starts the process and the loop that feeds it; leaving ends both."""

    def __init__(
        self,
        models: Sequence[ModelSpec],
        limits: RunnerLimits,
        on_batch: Callable[[BatchRecord], None] = lambda record: None,
    ) -> None:
        self._limits = limits
        self._process = ModelProcess(models, limits.num_threads)
        self._on_batch = on_batch
        self._room = TokenRoom(limits.queue_tokens)
        self._waiting: deque[_Waiting] = deque()
        self._being_planned: list[_Waiting] = []
        self._planned: deque[_Batch] = deque()
        self._under_way: deque[_Batch] = deque()
        self._proven: set[str] = set()
        self._came = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    @property
    def num_restarts(self) -> int:
        """Processes that were replaced."""
        return max(0, self._process.num_starts - 1)

    @property
    def pid(self) -> int | None:
        """Process id of the model process, None while there is none."""
        return self._process.pid

    async def __aenter__(self) -> ModelRunner:
        self._pump = asyncio.create_task(self._feed(), name="model-runner")
        self._pump.add_done_callback(self._fail_all)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        await self._process.kill()

    async def run(self, work: Work) -> Float32Array:
        """Outputs [P, labels] of ``work``; waits while the queue is full.

        Raises :class:`ModelProcessError` when the batch was lost or the model cannot answer.
        """
        async with self._room.take(len(work.token_ids)):
            if self._pump is None or self._pump.done():
                raise ModelProcessError("the model runner has ended")
            outputs = asyncio.get_running_loop().create_future()
            self._waiting.append(_Waiting(work, outputs))
            self._came.set()
            found: Float32Array = await outputs
            return found

    def _fail_all(self, pump: asyncio.Task[None]) -> None:
        """Nobody waits for a loop that has ended."""
        error = None if pump.cancelled() else pump.exception()
        reason = "the model runner has ended" if error is None else f"the model runner: {error!r}"
        held = (*self._being_planned, *_works(self._planned), *_works(self._under_way))
        for item in (*self._waiting, *held):
            if not item.outputs.done():
                item.outputs.set_exception(ModelProcessError(reason))

    async def _feed(self) -> None:
        await self._ensure_started()
        while True:
            while len(self._under_way) < MAX_UNDER_WAY and await self._send_next():
                pass
            if self._under_way:
                await self._take_answer()
            else:
                self._came.clear()
                await self._came.wait()

    async def _send_next(self) -> bool:
        """Hand one planned batch over, planning where none is left; False without work."""
        if not self._planned:
            window = self._being_planned = self._take_window()
            if not window:
                return False
            self._planned.extend(await self._plan(window))
            self._being_planned = []
        batch = self._planned.popleft()
        self._send(batch)
        return True

    async def _plan(self, items: Sequence[_Waiting]) -> list[_Batch]:
        works = [item.work for item in items]
        return [
            _Batch(tuple(items[member] for member in built.plan.members), built)
            for built in await asyncio.to_thread(build_batches, works, self._limits)
        ]

    async def _plan_halves(self, batch: _Batch) -> None:
        """Try a batch again in two that come next; what is left of it may be nothing."""
        items = self._being_planned = [item for item in batch.works if not item.outputs.done()]
        middle = (len(items) + 1) // 2
        for half in filter(None, (items[middle:], items[:middle])):
            self._planned.extendleft(reversed(await self._plan(half)))
        self._being_planned = []

    def _take_window(self) -> list[_Waiting]:
        """The oldest works that may share a batch, a few batches' worth of tokens."""
        window: list[_Waiting] = []
        others: deque[_Waiting] = deque()
        tokens = 0
        while self._waiting and tokens < WINDOW_BATCHES * self._limits.batch_tokens:
            item = self._waiting.popleft()
            if item.outputs.done():  # its caller has gone
                continue
            if window and item.work.batched_with != window[0].work.batched_with:
                others.append(item)
                continue
            window.append(item)
            tokens += len(item.work.token_ids)
        self._waiting.extendleft(reversed(others))
        return window

    def _send(self, batch: _Batch) -> None:
        now_s = asyncio.get_running_loop().time()
        self._under_way.append(replace(batch, started_s=now_s))
        with contextlib.suppress(ModelProcessError):  # the answer that will not come says so too
            self._process.send(batch.built.request, batch.built.arrays)

    async def _take_answer(self) -> None:
        batch = self._under_way[0]
        model = batch.built.request.model
        limit_s = self._limits.batch_s + (0 if model in self._proven else self._limits.load_s)
        try:
            reply, outputs = await self._process.receive(limit_s)
        except ModelProcessError as error:
            self._under_way.popleft()
            self._settle(batch, ForwardReply(failure=str(error)), None)
            await self._replace_process()
            return
        self._under_way.popleft()
        if not reply.failure:
            self._proven.add(model)
        if reply.out_of_memory and len(batch.works) > 1:
            await self._plan_halves(batch)
            self._on_batch(_record(batch, reply))
        else:
            self._settle(batch, reply, outputs)

    def _settle(self, batch: _Batch, reply: ForwardReply, outputs: Float32Array | None) -> None:
        """Give every work of ``batch`` its outputs, or the reason why there are none."""
        counts = [len(item.work.positions) for item in batch.works]
        if outputs is not None and len(outputs) != sum(counts):
            outputs, reply = None, ForwardReply(failure="the model process lost outputs")
        ends = np.cumsum(counts)
        for item, count, end in zip(batch.works, counts, ends, strict=True):
            if item.outputs.done():
                continue
            if outputs is None:
                item.outputs.set_exception(ModelProcessError(reply.failure))
            else:
                item.outputs.set_result(outputs[end - count : end])
        self._on_batch(_record(batch, reply))

    async def _replace_process(self) -> None:
        """Kill the process, start the next and hand it again what had not been its turn."""
        await self._process.kill()
        self._proven.clear()
        await self._ensure_started()
        with contextlib.suppress(ModelProcessError):
            for batch in self._under_way:
                self._process.send(batch.built.request, batch.built.arrays)

    async def _ensure_started(self) -> None:
        with contextlib.suppress(ModelProcessError):  # each batch learns it, and is the next try
            await self._process.start()


def _record(batch: _Batch, reply: ForwardReply) -> BatchRecord:
    return BatchRecord(
        model=batch.built.request.model,
        num_sequences=len(batch.works),
        num_tokens=batch.built.plan.num_tokens,
        num_places=batch.built.plan.num_places,
        seconds=asyncio.get_running_loop().time() - batch.started_s,
        compute_s=reply.compute_s,
        weight_bytes=reply.weight_bytes,
        failure=reply.failure,
    )


def _works(batches: deque[_Batch]) -> list[_Waiting]:
    return [item for batch in batches for item in batch.works]
