"""All campaigns by name, and how large each is."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.broker_process import BrokerProcess
from tests.chaos.broker.campaign import Campaign, Outcome
from tests.chaos.broker.deaths import Deaths, nobody
from tests.chaos.broker.kills import Death, Kills, numbered_deaths, random_deaths
from tests.chaos.broker.network import BadLinks, ProxiedBroker, SlowLinks, working_cast

DEATHS_PER_RUN = 100
ENDLESS = 1_000_000


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


CAMPAIGNS: dict[str, Callable[[Plan], Iterator[Outcome]]] = {
    "random": _random,
    "numbered": _numbered,
    "clients": _deaths,
    "network": _network,
    "slow-links": _slow_links,
}
