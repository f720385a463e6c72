"""A producer sends only against credit, in turn, and knows how long it has been blocked."""

from __future__ import annotations

import asyncio

from common.credit_gate import MAX_RESERVATION_BYTES, CreditGate


class Broker:
    """Grants what a test puts into ``grants``, one entry a reservation."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.grants: asyncio.Queue[int] = asyncio.Queue()

    async def reserve(self, least: int, most: int) -> int:
        self.asked.append((least, most))
        return await self.grants.get()


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_credit_at_hand_is_used_without_asking() -> None:
    async def scene() -> None:
        broker = Broker()
        gate = CreditGate(broker.reserve, Clock())
        gate.reset(100)
        await gate.take(60)
        await gate.take(40)
        gate.add(10)
        await gate.take(10)
        assert broker.asked == []

    asyncio.run(scene())


def test_what_is_missing_is_reserved_for_all_who_wait() -> None:
    async def scene() -> None:
        broker = Broker()
        gate = CreditGate(broker.reserve, Clock())
        gate.reset(30)
        tasks = [asyncio.create_task(gate.take(size)) for size in (100, 200, 300)]
        await settle()
        assert broker.asked == [(70, 570)]
        broker.grants.put_nowait(570)
        await asyncio.gather(*tasks)
        assert broker.asked == [(70, 570)]

    asyncio.run(scene())


def test_no_reservation_is_larger_than_the_cap_unless_one_rollout_is() -> None:
    async def scene() -> None:
        broker = Broker()
        gate = CreditGate(broker.reserve, Clock())
        small, large = 3 * MAX_RESERVATION_BYTES // 4, 2 * MAX_RESERVATION_BYTES
        tasks = [asyncio.create_task(gate.take(size)) for size in (small, small, large)]
        for grant in (small, small, large):
            broker.grants.put_nowait(grant)
        await asyncio.gather(*tasks)
        cap = MAX_RESERVATION_BYTES
        assert broker.asked == [(small, cap), (small, cap), (large, large)]

    asyncio.run(scene())


def test_a_full_broker_is_asked_again_and_the_wait_is_told() -> None:
    async def scene() -> None:
        broker, clock = Broker(), Clock()
        gate = CreditGate(broker.reserve, clock)
        task = asyncio.create_task(gate.take(50))
        await settle()
        clock.now_s += 30
        assert gate.blocked_for_s == 30
        broker.grants.put_nowait(0)
        await settle()
        assert broker.asked == [(50, 50), (50, 50)]
        clock.now_s += 12
        broker.grants.put_nowait(50)
        await task
        assert (gate.blocked_for_s, gate.blocked_total_s) == (0, 42)

    asyncio.run(scene())


def test_first_come_first_served_even_when_the_second_is_smaller() -> None:
    async def scene() -> None:
        broker = Broker()
        gate = CreditGate(broker.reserve, Clock())
        first = asyncio.create_task(gate.take(100))
        second = asyncio.create_task(gate.take(10))
        await settle()
        gate.add(50)
        await settle()
        assert not second.done()
        broker.grants.put_nowait(100)
        await asyncio.gather(first, second)

    asyncio.run(scene())


def test_a_wait_that_is_called_off_lets_the_next_one_in() -> None:
    async def scene() -> None:
        broker = Broker()
        gate = CreditGate(broker.reserve, Clock())
        first = asyncio.create_task(gate.take(100))
        second = asyncio.create_task(gate.take(10))
        await settle()
        first.cancel()
        await settle()
        assert broker.asked[-1] == (10, 10)
        broker.grants.put_nowait(10)
        await second

    asyncio.run(scene())


def test_credit_of_a_lost_connection_is_void() -> None:
    async def scene() -> None:
        broker = Broker()
        gate = CreditGate(broker.reserve, Clock())
        gate.reset(1000)
        gate.reset(0)
        task = asyncio.create_task(gate.take(10))
        await settle()
        assert broker.asked == [(10, 10)]
        broker.grants.put_nowait(10)
        await task

    asyncio.run(scene())
