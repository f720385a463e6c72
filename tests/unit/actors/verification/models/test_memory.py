"""Equal inputs are computed once; tokens that do not fit wait their turn."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from actors.verification.models.memory import AnswerMemory
from actors.verification.models.token_room import TokenRoom
from common.errors import InfraError


async def _let_others_run() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


def test_equal_inputs_are_computed_once_and_get_the_same_bits() -> None:
    calls: list[int] = []

    async def compute() -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        calls.append(1)
        await asyncio.sleep(0)
        return np.random.default_rng(len(calls)).random(3)

    async def ask() -> None:
        memory: AnswerMemory[np.ndarray[tuple[int], np.dtype[np.float64]]] = AnswerMemory()
        both = await asyncio.gather(*(memory.get("key", compute) for _ in range(8)))
        later = await memory.get("key", compute)
        assert len(calls) == 1
        assert all(np.array_equal(found, later) for found in both)
        await memory.get("other", compute)
        assert len(calls) == 2

    asyncio.run(ask())


def test_a_failure_is_not_remembered() -> None:
    async def fail() -> int:
        raise InfraError("gone")

    async def answer() -> int:
        return 7

    async def ask() -> None:
        memory: AnswerMemory[int] = AnswerMemory()
        with pytest.raises(InfraError):
            await memory.get("key", fail)
        assert await memory.get("key", answer) == 7

    asyncio.run(ask())


def test_the_oldest_answer_makes_room() -> None:
    calls: list[str] = []

    async def ask() -> None:
        memory: AnswerMemory[str] = AnswerMemory(capacity=2)

        async def get(key: str) -> None:
            async def compute() -> str:
                calls.append(key)
                return key

            await memory.get(key, compute)
            await asyncio.sleep(0)

        for key in "abaca":
            await get(key)
        await get("b")

    asyncio.run(ask())
    assert calls == ["a", "b", "c", "b"]


def test_a_caller_that_leaves_does_not_take_the_answer_from_the_others() -> None:
    async def ask() -> None:
        memory: AnswerMemory[int] = AnswerMemory()
        gate = asyncio.Event()

        async def compute() -> int:
            await gate.wait()
            return 7

        first = asyncio.create_task(memory.get("key", compute))
        second = asyncio.create_task(memory.get("key", compute))
        await asyncio.sleep(0)
        first.cancel()
        gate.set()
        assert await second == 7

    asyncio.run(ask())


def test_what_does_not_fit_waits_in_its_order_and_a_giant_enters_alone() -> None:
    entered: list[str] = []

    async def hold(room: TokenRoom, name: str, tokens: int, leave: asyncio.Event) -> None:
        async with room.take(tokens):
            entered.append(name)
            await leave.wait()

    async def use() -> None:
        room = TokenRoom(10)
        leave = {name: asyncio.Event() for name in ("a", "giant", "small")}
        tasks = [
            asyncio.create_task(hold(room, name, tokens, leave[name]))
            for name, tokens in (("a", 6), ("giant", 50), ("small", 2))
        ]
        await _let_others_run()
        assert entered == ["a"]
        leave["a"].set()
        await _let_others_run()
        assert entered == ["a", "giant"]
        assert room.num_tokens == 50
        leave["giant"].set()
        leave["small"].set()
        await asyncio.gather(*tasks)
        assert room.num_tokens == 0

    asyncio.run(use())
    assert entered == ["a", "giant", "small"]
