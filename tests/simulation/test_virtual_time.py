"""What two runs on a virtual loop have in common, wherever their objects lie in memory."""

from __future__ import annotations

import asyncio
import random

from tests.simulation.virtual_time import NumberedTask, VirtualLoop

NUM_TASKS = 64


async def _cancelled_in_order(seeded: random.Random) -> list[int]:
    """The order in which a group of tasks is cancelled, with other objects between them."""
    between: list[NumberedTask] = []
    cancelled: list[int] = []

    async def wait(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(number)

    async def fail() -> None:
        raise ValueError

    try:
        async with asyncio.TaskGroup() as tasks:
            for number in range(NUM_TASKS):
                between += (NumberedTask.__new__(NumberedTask) for _ in range(seeded.randrange(9)))
                tasks.create_task(wait(number))
            tasks.create_task(fail())
    except* ValueError:
        pass
    return cancelled


def test_tasks_are_cancelled_in_an_order_that_memory_has_no_part_in() -> None:
    orders = []
    for seed in range(3):
        loop = VirtualLoop()
        orders.append(loop.run_until_complete(_cancelled_in_order(random.Random(seed))))
        loop.close()
    assert sorted(orders[0]) == list(range(NUM_TASKS))
    assert orders[0] == orders[1] == orders[2]
