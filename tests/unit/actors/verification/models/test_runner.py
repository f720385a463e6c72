"""The queue in front of a model process: order, batches, losses; the process itself is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from actors.verification.models import runner as runner_module
from actors.verification.models.model_process import ModelProcessError
from actors.verification.models.runner import BatchRecord, ModelRunner
from actors.verification.models.work import RunnerLimits, Work
from common.arrays import Float32Array
from tests.unit.actors.verification.models.scripted_process import ScriptedProcess
from tests.unit.actors.verification.models.tiny_scorers import random_tokens

LIMITS = RunnerLimits(batch_tokens=64, queue_tokens=100_000, batch_s=5.0, load_s=5.0)


def _works(lengths: Sequence[int], *, model: str = "m", seed: int = 0) -> list[Work]:
    return [
        Work(model, ids, np.array([0, len(ids) // 2, len(ids) - 1], dtype=np.int32), share=n % 3)
        for n, ids in enumerate(random_tokens(lengths, seed=seed))
    ]


def _run(
    process: ScriptedProcess, works: Sequence[Work], limits: RunnerLimits = LIMITS
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
    process = ScriptedProcess()
    outputs, records = _run(process, works)
    assert [found[:, 0].tolist() for found in outputs] == [_expected(work) for work in works]
    assert sum(record.num_sequences for record in records) == len(works)
    assert len(records) <= 24  # of 64 places each, for 1,084 tokens
    assert process.most_under_way == 2


def test_models_and_temperatures_never_share_a_batch() -> None:
    works = [*_works([9] * 6, model="a"), *_works([9] * 6, model="b", seed=1)]
    process = ScriptedProcess()
    outputs, records = _run(process, works)
    assert [found[:, 0].tolist() for found in outputs] == [_expected(work) for work in works]
    assert {request.model for request in process.requests} == {"a", "b"}
    assert sum(record.num_sequences for record in records if record.model == "a") == 6


def test_a_death_costs_the_batch_of_its_turn_and_no_other() -> None:
    works = _works([60] * 6)
    process = ScriptedProcess(dies_at=[2])
    outputs, records = _run(process, works)
    lost = [found for found in outputs if isinstance(found, ModelProcessError)]
    assert len(lost) == 1
    for work, found in zip(works, outputs, strict=True):
        assert isinstance(found, ModelProcessError) or found[:, 0].tolist() == _expected(work)
    assert process.num_starts == 2
    assert [record.failure for record in records].count("") == 5


def test_outputs_of_another_number_are_nobodys() -> None:
    works = _works([60] * 3)
    outputs, records = _run(ScriptedProcess(short_at=[0]), works)
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
        setattr(runner, "_process", ScriptedProcess())  # noqa: B010 # a fake of another type
        async with runner:
            first = await asyncio.gather(runner.run(_works([5])[0]), return_exceptions=True)
            return [*first, *await asyncio.gather(runner.run(_works([5])[0]),
                                                  return_exceptions=True)]  # fmt: skip

    told, later = asyncio.run(asyncio.wait_for(run(), 10.0))
    assert "planning" in str(told)
    assert isinstance(later, ModelProcessError)


def test_an_old_work_is_not_overtaken_for_ever_by_its_window() -> None:
    works = [*_works([2]), *_works([60] * 40, seed=1)]
    process = ScriptedProcess()
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
