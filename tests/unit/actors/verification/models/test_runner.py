"""The queue in front of a model process: order, batches, losses; the process itself is scripted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from actors.verification.models import runner as runner_module
from actors.verification.models.frames import ForwardReply, ForwardRequest
from actors.verification.models.layout import lay_out
from actors.verification.models.model_process import ModelProcessError
from actors.verification.models.runner import BatchRecord, ModelRunner
from actors.verification.models.work import RunnerLimits, Work
from common.arrays import Float32Array, Int32Array
from tests.unit.actors.verification.models.tiny_scorers import random_tokens

LIMITS = RunnerLimits(batch_tokens=64, queue_tokens=100_000, batch_s=5.0, load_s=5.0)


class _Scripted:
    """Answers each wanted place with its token id and its row's number; may die or stammer."""

    def __init__(self, *, dies_at: Sequence[int] = (), short_at: Sequence[int] = ()) -> None:
        self._dies_at = set(dies_at)
        self._short_at = set(short_at)
        self._sent: deque[tuple[ForwardRequest, tuple[Int32Array, ...]]] = deque()
        self.requests: list[ForwardRequest] = []
        self.num_starts = 0
        self.num_answered = 0
        self.most_under_way = 0
        self.pid = None

    async def start(self) -> None:
        self.num_starts += 1

    def send(self, request: ForwardRequest, arrays: Sequence[Int32Array]) -> None:
        self._sent.append((request, tuple(arrays)))
        self.requests.append(request)
        self.most_under_way = max(self.most_under_way, len(self._sent))

    async def receive(self, limit_s: float) -> tuple[ForwardReply, Float32Array | None]:
        await asyncio.sleep(0)
        request, (token_ids, places, _) = self._sent.popleft()
        number, self.num_answered = self.num_answered, self.num_answered + 1
        if number in self._dies_at:
            raise ModelProcessError("the model process died in mid-batch")
        flat = lay_out(request, token_ids).input_ids.reshape(-1)
        outputs = flat[places].astype(np.float32)[:, None]
        if number in self._short_at:
            outputs = outputs[1:]
        return ForwardReply(num_outputs=len(outputs), num_labels=1), outputs

    async def kill(self) -> None:
        self._sent.clear()


def _works(lengths: Sequence[int], *, model: str = "m", seed: int = 0) -> list[Work]:
    return [
        Work(model, ids, np.array([0, len(ids) // 2, len(ids) - 1], dtype=np.int32), share=n % 3)
        for n, ids in enumerate(random_tokens(lengths, seed=seed))
    ]


def _run(
    process: _Scripted, works: Sequence[Work], limits: RunnerLimits = LIMITS
) -> tuple[list[Any], list[BatchRecord]]:
    records: list[BatchRecord] = []

    async def run() -> list[Any]:
        runner = ModelRunner([], limits, records.append)
        setattr(runner, "_process", process)  # noqa: B010 # a fake of another type
        async with runner:
            calls = (runner.run(work) for work in works)
            return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(run()), records


def _expected(work: Work) -> list[float]:
    return [float(work.token_ids[place]) for place in work.positions]


def test_everyone_gets_the_outputs_of_its_own_places() -> None:
    works = _works([5, 60, 3, 17, 90, 8, 33, 2, 41, 12] * 4)
    process = _Scripted()
    outputs, records = _run(process, works)
    assert [found[:, 0].tolist() for found in outputs] == [_expected(work) for work in works]
    assert sum(record.num_sequences for record in records) == len(works)
    assert len(records) <= 24  # of 64 places each, for 1,084 tokens
    assert process.most_under_way == 2


def test_models_and_temperatures_never_share_a_batch() -> None:
    works = [*_works([9] * 6, model="a"), *_works([9] * 6, model="b", seed=1)]
    process = _Scripted()
    outputs, records = _run(process, works)
    assert [found[:, 0].tolist() for found in outputs] == [_expected(work) for work in works]
    assert {request.model for request in process.requests} == {"a", "b"}
    assert sum(record.num_sequences for record in records if record.model == "a") == 6


def test_a_death_costs_the_batch_of_its_turn_and_no_other() -> None:
    works = _works([60] * 6)
    process = _Scripted(dies_at=[2])
    outputs, records = _run(process, works)
    lost = [found for found in outputs if isinstance(found, ModelProcessError)]
    assert len(lost) == 1
    for work, found in zip(works, outputs, strict=True):
        assert isinstance(found, ModelProcessError) or found[:, 0].tolist() == _expected(work)
    assert process.num_starts == 2
    assert [record.failure for record in records].count("") == 5


def test_outputs_of_another_number_are_nobodys() -> None:
    works = _works([60] * 3)
    outputs, records = _run(_Scripted(short_at=[0]), works)
    failed = [isinstance(found, ModelProcessError) for found in outputs]
    assert failed.count(True) == 1
    assert "lost outputs" in records[0].failure


def test_an_error_of_our_own_is_told_to_everyone_who_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("planning")

    monkeypatch.setattr(runner_module, "build_batches", fail)

    async def run() -> list[BaseException | Float32Array]:
        runner = ModelRunner([], LIMITS)
        setattr(runner, "_process", _Scripted())  # noqa: B010 # a fake of another type
        async with runner:
            first = await asyncio.gather(runner.run(_works([5])[0]), return_exceptions=True)
            return [*first, *await asyncio.gather(runner.run(_works([5])[0]),
                                                  return_exceptions=True)]  # fmt: skip

    told, later = asyncio.run(asyncio.wait_for(run(), 10.0))
    assert "planning" in str(told)
    assert isinstance(later, ModelProcessError)


def test_an_old_work_is_not_overtaken_for_ever_by_its_window() -> None:
    works = [*_works([2]), *_works([60] * 40, seed=1)]
    process = _Scripted()
    order: list[int] = []

    async def run() -> None:
        runner = ModelRunner([], LIMITS)
        setattr(runner, "_process", process)  # noqa: B010 # a fake of another type

        async def ask(number: int) -> None:
            await runner.run(works[number])
            order.append(number)

        async with runner:
            await asyncio.gather(*map(ask, range(len(works))))

    asyncio.run(run())
    assert order.index(0) <= 5
