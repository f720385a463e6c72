"""One simulated run: a broker, its clients and everything that goes wrong, from one seed."""

from __future__ import annotations

import asyncio
import os
import random
import traceback
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from broker import group_commit
from broker.journal import journal
from common.types import Role
from tests.simulation.actor import Actor
from tests.simulation.behaviour import Behaviour
from tests.simulation.books import Books
from tests.simulation.broker_node import BrokerNode
from tests.simulation.collector import Collector
from tests.simulation.disk import Disk
from tests.simulation.learner import Learner
from tests.simulation.nemesis import Nemesis, Target
from tests.simulation.network import Network
from tests.simulation.process import Process
from tests.simulation.scenario import Scenario
from tests.simulation.store import Store
from tests.simulation.trace import Trace, Violation
from tests.simulation.verifier import Verifier
from tests.simulation.virtual_time import VirtualLoop

CALM_S = 4000.0
"""Virtual seconds within which a run must end once faults have stopped."""


@dataclass(frozen=True)
class Outcome:
    """How one run went."""

    num_steps: int
    trace_hash: int
    virtual_s: float
    faults: Counter[str]
    tally: Counter[str]
    violation: Violation | None
    tail: tuple[str, ...]


class World:
    """All parts of one run, put together."""

    def __init__(self, seed: str, scenario: Scenario, books: Books | None = None) -> None:
        self._scenario = scenario
        rules = scenario.rules
        self.loop = VirtualLoop()
        self.trace = Trace(self.loop.time)
        self.books = books or Books(rules)
        self._behaviour = Behaviour(poison_every=scenario.poison_every)
        self.network = Network(self.loop, random.Random(f"{seed}/network"), self.trace)
        self.disk = Disk(random.Random(f"{seed}/disk"), self.loop)
        self.broker = BrokerNode(
            self.loop,
            self.network,
            self.disk,
            self.books,
            rules,
            random.Random(f"{seed}/broker"),
            scenario.num_prompts,
            scenario.acks,
        )
        self._salts = random.Random(f"{seed}/salts")
        self.clients = self._make_clients(seed)
        target = Target(
            self.trace, self.network, self.disk, self.broker, self.clients, self._behaviour
        )
        self._nemesis = Nemesis(target, seed, scenario.enabled, scenario.rate)

    def run(self) -> None:
        """Run to the end; raises :class:`Violation`."""
        try:
            with (
                patch.object(group_commit, "SyncThread", self.broker.make_sync_thread),
                patch.object(journal, "Syncer", self.broker.make_syncer),
                patch.object(journal, "Upkeep", self.broker.make_upkeep),
                patch.object(os, "urandom", self._salts.randbytes),
            ):
                self.loop.run_until_complete(self._run())
        finally:
            self.loop.run_until_complete(_end_tasks(asyncio.all_tasks(self.loop)))
            self.loop.close()

    async def _run(self) -> None:
        self._nemesis.start()
        jobs = [self.broker.run(), *(client.run() for client in self.clients)]
        tasks = [asyncio.create_task(job) for job in jobs]
        consumer = tasks[-1]
        await self._until(consumer, tasks, self._scenario.storm_s)
        self._nemesis.stop()
        self.books.is_calm = True
        self.trace.step("calm")
        await self._until(consumer, tasks, CALM_S)
        if not consumer.done():
            raise Violation("G10", f"the run did not end within {CALM_S:.0f} s of calm")
        self.books.check_end(self.broker.ledger, self.broker.payload_groups)

    async def _until(
        self, consumer: asyncio.Task[None], tasks: list[asyncio.Task[None]], seconds: float
    ) -> None:
        """Wait for the consumer to be done; whoever fails before ends the run."""
        deadline_s = self.loop.time() + seconds
        while not consumer.done() and self.loop.time() < deadline_s:
            left_s = deadline_s - self.loop.time()
            running = [task for task in tasks if not task.done()]
            await asyncio.wait(running, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()

    def _make_clients(self, seed: str) -> list[Process]:
        scenario = self._scenario

        def make(kind: type[Process], name: str, role: Role) -> Process:
            seeded = random.Random(f"{seed}/{name}")
            surroundings = (self.network, self.books, self._behaviour, seeded)
            return kind(name, role, *surroundings, payloads=scenario.payloads)

        is_train = scenario.rules.kind == "train"
        clients = [make(Store, f"store-{n}", Role.STORE) for n in range(scenario.num_stores)]
        for number in range(scenario.num_actors):
            actor = make(Actor, f"actor-{number}", Role.ACTOR)
            assert isinstance(actor, Actor)
            actor.collects = not is_train
            clients.append(actor)
        clients += [
            make(Verifier, f"verifier-{n}", Role.VERIFIER) for n in range(scenario.num_verifiers)
        ]
        if is_train:
            return [*clients, make(Learner, "learner", Role.LEARNER)]
        return [*clients, make(Collector, "collector", Role.COLLECTOR)]


async def _end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel what is left of a world."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _first_cause(error: BaseException) -> BaseException:
    """The error that ended a group of tasks."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def simulate(
    seed: str,
    without: Collection[str] = (),
    *,
    scenario: Scenario | None = None,
    has_lying_disk: bool = False,
) -> Outcome:
    """Run the world of ``seed``, leaving some kinds of faults out."""
    scenario = scenario or Scenario.draw(seed)
    kept = tuple(kind for kind in scenario.enabled if kind not in without)
    world = World(seed, replace(scenario, enabled=kept))
    world.disk.fake.lies = has_lying_disk
    violation = None
    try:
        world.run()
    except Exception as error:
        cause = _first_cause(error)
        violation = cause if isinstance(cause, Violation) else _as_violation(cause)
    trace = world.trace
    group_id = None if violation is None else violation.group_id
    return Outcome(
        num_steps=trace.num_steps,
        trace_hash=trace.hash,
        virtual_s=world.loop.time(),
        faults=trace.num_faults,
        tally=world.books.tally,
        violation=violation,
        tail=tuple(trace.tail(group_id)) if violation is not None else (),
    )


def _as_violation(error: BaseException) -> Violation:
    """An error that nothing in the world should have raised."""
    told = "".join(traceback.format_exception(error)[-6:])
    return Violation("unexpected error", f"{error!r}\n{told}")
