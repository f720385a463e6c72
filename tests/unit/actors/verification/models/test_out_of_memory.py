"""A device without memory for a batch costs time, and an answer only to what does not fit alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from actors.verification.models import process
from actors.verification.models.frames import ForwardReply, ForwardRequest
from actors.verification.models.model_process import ModelProcessError
from actors.verification.models.process import Models, PreparedBatch
from actors.verification.models.runner import BatchRecord, ModelRunner
from actors.verification.models.work import RunnerLimits, Work
from common.arrays import Float32Array
from common.codec import unpack
from tests.unit.actors.verification.models.scripted_process import ScriptedProcess
from tests.unit.actors.verification.models.tiny_scorers import random_tokens

_LIMITS = RunnerLimits(batch_tokens=512, queue_tokens=100_000, batch_s=5.0, load_s=5.0)


def _run(room: int, lengths: Sequence[int]) -> tuple[list[Work], list[Any], list[BatchRecord]]:
    works = [
        Work("m", ids, np.array([0, len(ids) - 1], dtype=np.int32), share=number % 3)
        for number, ids in enumerate(random_tokens(lengths, seed=0))
    ]
    records: list[BatchRecord] = []

    async def run() -> list[Any]:
        runner = ModelRunner([], _LIMITS, records.append)
        setattr(runner, "_process", ScriptedProcess(room=room))  # noqa: B010 # a fake of another type
        async with runner:
            calls = (runner.run(work) for work in works)
            return await asyncio.gather(*calls, return_exceptions=True)

    return works, asyncio.run(asyncio.wait_for(run(), 30.0)), records


@pytest.mark.parametrize("room", [32, 64, 200, 10_000])
def test_a_batch_is_halved_until_it_fits(room: int) -> None:
    works, outputs, records = _run(room, [20, 30, 9, 17, 32, 8, 3, 31] * 6)
    for work, found in zip(works, outputs, strict=True):
        assert found[:, 0].tolist() == [float(work.token_ids[0]), float(work.token_ids[-1])]
    assert any(record.failure for record in records) == (room < 512)


def test_a_sequence_that_does_not_fit_alone_costs_only_itself() -> None:
    works, outputs, _ = _run(64, [20, 65, 9, 64, 100, 8])
    failed = [isinstance(found, ModelProcessError) for found in outputs]
    assert failed == [len(work.token_ids) > 64 for work in works]
    assert str(outputs[1]) == "CUDA out of memory"


class _Loaded(Models):
    """Models of which ``m`` is there, and whose forward fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__(())
        self._error = error

    def holds(self, name: str) -> bool:
        return name == "m"

    def run(self, batch: PreparedBatch) -> tuple[ForwardReply, Float32Array]:
        raise self._error


@pytest.mark.parametrize(
    ("error", "model", "out_of_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "m", True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "m", True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "m", True),
        (MemoryError(), "m", True),
        (RuntimeError("device-side assert triggered"), "m", False),
        (torch.OutOfMemoryError("while its weights were loaded"), "another", False),
    ],
)
def test_only_a_forward_without_memory_is_worth_halving(
    error: Exception, model: str, out_of_memory: bool
) -> None:
    request = ForwardRequest(model=model, row_length=1, rows=())
    empty = torch.zeros(0, dtype=torch.int64)
    message = process._answer(_Loaded(error), PreparedBatch(request, (), empty, empty))
    reply: ForwardReply = unpack(message[8:], ForwardReply)
    assert (reply.out_of_memory, type(error).__name__ in reply.failure) == (out_of_memory, True)
