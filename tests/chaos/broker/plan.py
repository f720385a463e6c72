"""All campaigns by name, and how large each is."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.broker_process import BrokerProcess
from tests.chaos.broker import burdens, fleet, flood, namespace, oversize, recovery, replay
from tests.chaos.broker.campaign import ENDLESS, Campaign, Outcome
from tests.chaos.broker.deaths import Deaths, nobody
from tests.chaos.broker.kills import Death, Kills, numbered_deaths, random_deaths
from tests.chaos.broker.network import BadLinks, ProxiedBroker, SlowLinks, working_cast

DEATHS_PER_RUN = 100
_INSIDE = "tests.chaos.broker.inside"


@dataclass(frozen=True)
class Plan:
    """The size of a whole report."""

    seed: int = 1
    kills: int = 1000
    points: int = 120
    scale: float = 1.0

    def times(self, number: int) -> int:
        """``number`` trials at scale 1."""
        return max(1, round(self.scale * number))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one run."""
    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as folder:
        yield Path(folder)


def _kills(name: str, seed: int, deaths: list[Death]) -> Iterator[Outcome]:
    for start in range(0, len(deaths), DEATHS_PER_RUN):
        part = deaths[start : start + DEATHS_PER_RUN]
        with scratch() as folder:
            yield Campaign(folder, name, seed + start).run(Kills(part))


def _random(plan: Plan) -> Iterator[Outcome]:
    return _kills("random", plan.seed, list(random_deaths(plan.kills, random.Random(plan.seed))))


def _numbered(plan: Plan) -> Iterator[Outcome]:
    return _kills("numbered", plan.seed, list(numbered_deaths(plan.points)))


def _network(plan: Plan) -> Iterator[Outcome]:
    with scratch() as folder:
        broker = ProxiedBroker(folder, num_steps=ENDLESS, dead_after_s=0.6)
        broker.dice.seed(plan.seed)
        trouble = BadLinks(broker, plan.times(300))
        yield Campaign(folder, "network", plan.seed, broker).run(trouble, working_cast)


def _slow_links(plan: Plan) -> Iterator[Outcome]:
    """Heartbeats as configured by default; a lease of three of them, shorter than by default."""
    with scratch() as folder:
        broker = ProxiedBroker(folder, num_steps=ENDLESS, dead_after_s=6.0, heartbeat_s=2.0)
        broker.dice.seed(plan.seed)
        trouble = SlowLinks(broker, delay_s=1.0, seconds=60 * plan.scale)
        yield Campaign(folder, "slow-links", plan.seed, broker).run(trouble, working_cast)


def _deaths(plan: Plan) -> Iterator[Outcome]:
    with scratch() as folder:
        broker = BrokerProcess(folder, num_steps=ENDLESS, dead_after_s=0.6)
        yield Campaign(folder, "clients", plan.seed, broker).run(Deaths(plan.times(1000)), nobody)


def _poison(plan: Plan) -> Iterator[Outcome]:
    with scratch() as folder:
        yield burdens.poison(folder, 30 * plan.scale, plan.seed)


def _slow_actor(plan: Plan) -> Iterator[Outcome]:
    for staleness in ("wait", "mask_tokens", "drop_group"):
        with scratch() as folder:
            yield burdens.straggler(folder, 30 * plan.scale, plan.seed, staleness)


def _partition(plan: Plan) -> Iterator[Outcome]:
    yield namespace.run_inside(_INSIDE, "partition", str(plan.seed), str(plan.times(50)))


def _disk(plan: Plan) -> Iterator[Outcome]:
    """Disks of three sizes; each fills up and is freed 20 times."""
    for kilobytes in (512, 1024, 4096):
        numbers = (plan.seed, plan.times(20), kilobytes)
        yield namespace.run_inside(_INSIDE, "disk", *map(str, numbers))


def _replay(plan: Plan) -> Iterator[Outcome]:
    with scratch() as folder:
        yield replay.replay(folder, plan.seed)


def _twins(plan: Plan) -> Iterator[Outcome]:
    with scratch() as folder:
        yield replay.twins(folder, plan.times(20), plan.seed)


def _fleet(plan: Plan) -> Iterator[Outcome]:
    with scratch() as folder:
        yield fleet.storm(folder, 1000, plan.times(10), plan.seed)


def _fair_share(plan: Plan) -> Iterator[Outcome]:
    with scratch() as folder:
        yield fleet.fairness(folder, 1000, max(5.0, 20 * plan.scale), plan.seed)


def _recovery(plan: Plan) -> Iterator[Outcome]:
    with scratch() as folder:
        yield recovery.recovery(folder, round(1e9 * plan.scale), plan.seed)


def _flood(plan: Plan) -> Iterator[Outcome]:
    with scratch() as folder:
        offered_bytes = max(round(2e9 * plan.scale), flood.LEAST_OFFERED_BYTES)
        size = flood.Flood(offered_bytes, memory_bytes=256 << 20)
        yield flood.flood(folder, size, plan.seed)


def _oversize(plan: Plan) -> Iterator[Outcome]:
    with scratch() as folder:
        yield oversize.oversize(folder, plan.seed)


CAMPAIGNS: dict[str, Callable[[Plan], Iterator[Outcome]]] = {
    "random": _random,
    "numbered": _numbered,
    "clients": _deaths,
    "network": _network,
    "slow-links": _slow_links,
    "partition": _partition,
    "poison": _poison,
    "slow-actor": _slow_actor,
    "fleet": _fleet,
    "fair-share": _fair_share,
    "disk": _disk,
    "replay": _replay,
    "twins": _twins,
    "oversize": _oversize,
    "recovery": _recovery,
    "flood": _flood,
}
