"""The source of faults: kinds, how often each comes, and the end of them all.

Every kind draws from a random stream of its own, so leaving one out does not move the others.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from tests.simulation.behaviour import Behaviour
from tests.simulation.broker_node import BrokerNode
from tests.simulation.disk import Disk
from tests.simulation.network import Network
from tests.simulation.process import Process
from tests.simulation.trace import Trace

BEHAVIOURS = {
    "infra_error": 0.08,
    "bad_input": 0.004,
    "wedge": 0.01,
    "forgotten_lease": 0.05,
    "give_up": 0.05,
    "engine_error": 0.3,
    "two_contents": 0.005,
    "ignore_revocation": 0.5,
    "future_version": 0.05,
    "stale_tokens": 0.05,
    "zero_advantage": 0.05,
    "late_publish": 0.3,
    "fork": 0.4,
    "kill_point": 0.03,
    "no_reference": 0.1,
}


@dataclass(frozen=True)
class Target:
    """All that faults happen to."""

    trace: Trace
    network: Network
    disk: Disk
    broker: BrokerNode
    clients: Sequence[Process]
    behaviour: Behaviour


class Nemesis:
    """Injects faults of the ``enabled`` kinds until told to stop."""

    def __init__(self, target: Target, seed: str, enabled: Collection[str], rate: float) -> None:
        self._target = target
        self._seed = seed
        self._enabled = enabled
        self._rate = rate
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin; every kind comes at times of its own."""
        behaviour = self._target.behaviour
        for name, share in BEHAVIOURS.items():
            if name in self._enabled:
                setattr(behaviour, name, share)
        for kind, every_s in FAULTS.items():
            if kind in self._enabled:
                seeded = random.Random(f"{self._seed}/{kind}")
                task = asyncio.create_task(self._inject(kind, every_s / self._rate, seeded))
                self._tasks.append(task)

    def stop(self) -> None:
        """No faults any more, and all that was broken is mended."""
        for task in self._tasks:
            task.cancel()
        target = self._target
        target.behaviour.calm()
        target.network.quality = type(target.network.quality)()
        target.disk.mend()
        for client in target.clients:
            target.network.heal(client.name)
            client.thaw()

    async def _inject(self, kind: str, every_s: float, seeded: random.Random) -> None:
        fault: Callable[[random.Random], float] = getattr(self, f"_{kind}")
        while True:
            await asyncio.sleep(seeded.expovariate(1.0 / every_s))
            await asyncio.sleep(fault(seeded))
            self._end(kind)

    def _end(self, kind: str) -> None:
        """A fault that lasts is over."""
        target = self._target
        if kind == "slow_network":
            target.network.quality.slow_share = 0.0
        elif kind == "messages_duplicated":
            target.network.quality.duplicate_share = 0.0
        elif kind == "disk_full":
            target.disk.mend()

    def _client(self, seeded: random.Random) -> Process:
        return seeded.choice(list(self._target.clients))

    # --- one method a kind; each returns how long it lasts ----------------------------------------

    def _client_killed(self, seeded: random.Random) -> float:
        client = self._client(seeded)
        self._target.trace.fault("client_killed", client.name)
        client.kill()
        return 0.0

    def _learner_killed(self, seeded: random.Random) -> float:
        self._target.trace.fault("learner_killed", "anywhere")
        self._target.clients[-1].kill()
        return 0.0

    def _client_stopped(self, seeded: random.Random) -> float:
        client = self._client(seeded)
        self._target.trace.fault("client_stopped", client.name)
        client.freeze()
        asyncio.get_running_loop().call_later(seeded.uniform(1.0, 50.0), client.thaw)
        return 0.0

    def _connection_broken(self, seeded: random.Random) -> float:
        client = self._client(seeded)
        self._target.trace.fault("connection_broken", client.name)
        self._target.network.break_client(client.name, deliver_rest=seeded.random() < 0.5)
        return 0.0

    def _partition(self, seeded: random.Random) -> float:
        client = self._client(seeded)
        directions = seeded.choice([(True,), (False,), (True, False)])
        kind = "partition" if len(directions) == 2 else "partition_one_way"
        self._target.trace.fault(kind, f"{client.name} {directions}")
        self._target.network.partition(client.name, directions)
        loop = asyncio.get_running_loop()
        loop.call_later(seeded.uniform(1.0, 60.0), self._target.network.heal, client.name)
        return 0.0

    def _slow_network(self, seeded: random.Random) -> float:
        self._target.trace.fault("slow_network")
        self._target.network.quality.slow_share = 0.2
        return seeded.uniform(1.0, 20.0)

    def _messages_duplicated(self, seeded: random.Random) -> float:
        self._target.network.quality.duplicate_share = 0.2
        return seeded.uniform(1.0, 20.0)

    def _broker_killed(self, seeded: random.Random) -> float:
        self._target.trace.fault("broker_killed")
        self._target.broker.kill()
        return 0.0

    def _broker_killed_between_replies(self, seeded: random.Random) -> float:
        self._target.trace.fault("broker_killed_between_replies")
        self._target.broker.kill_after_replies(seeded.randrange(4))
        return 0.0

    def _power_lost(self, seeded: random.Random) -> float:
        self._target.trace.fault("power_lost")
        self._target.broker.lose_power()
        return 0.0

    def _power_lost_at_write(self, seeded: random.Random) -> float:
        self._target.trace.fault("power_lost_at_write")
        self._target.disk.cut_power_after(seeded.randrange(12))
        return 0.0

    def _disk_full(self, seeded: random.Random) -> float:
        self._target.trace.fault("disk_full")
        self._target.disk.fill()
        return seeded.uniform(1.0, 20.0)

    def _fsync_failed(self, seeded: random.Random) -> float:
        self._target.trace.fault("fsync_failed")
        self._target.disk.fail_syncs()
        return 0.0

    def _bit_flipped(self, seeded: random.Random) -> float:
        """At rest: the broker is killed, and finds a damaged disk."""
        self._target.disk.flips_next = True
        self._target.broker.kill()
        return 0.0


FAULTS = {
    "client_killed": 15.0,
    "learner_killed": 25.0,
    "client_stopped": 20.0,
    "connection_broken": 10.0,
    "partition": 20.0,
    "slow_network": 30.0,
    "messages_duplicated": 30.0,
    "broker_killed": 30.0,
    "broker_killed_between_replies": 30.0,
    "power_lost": 40.0,
    "power_lost_at_write": 30.0,
    "disk_full": 60.0,
    "fsync_failed": 90.0,
    "bit_flipped": 60.0,
}
"""Mean seconds between two faults of a kind, at rate 1."""
KINDS = (*FAULTS, *BEHAVIOURS)
