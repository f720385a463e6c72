"""Links that fail: between each client and the broker stands a proxy that misbehaves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from common.endpoints import read_endpoint
from common.transport import Channel
from common.types import Role
from tests.broker_process import BrokerProcess
from tests.chaos.broker.campaign import Campaign
from tests.chaos.broker.clients import Judge, Sampler
from tests.chaos.proxy import DIRECTIONS, Proxy, Weather

_THINK_S = 0.02


@dataclass
class TcpBroker(BrokerProcess):
    """A broker on a TCP port without keys."""

    endpoint: str = "tcp://127.0.0.1:0"
    heartbeat_s: float = 0.2
    extra: str = ""
    """More lines for the section ``[broker]``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        lines = f'endpoint = "{self.endpoint}"\nallow_plaintext_tcp = true\n{self.extra}'
        text = self.run_file.read_text().replace("[broker]\n", f"[broker]\n{lines}\n")
        text = text.replace("heartbeat_s = 0.2", f"heartbeat_s = {self.heartbeat_s}")
        self.run_file.write_text(text)

    def address(self) -> tuple[str, int]:
        """Host and port that it listens on by now; ``OSError`` while it has none."""
        host, _, port = self.paths.endpoint_file.read_text().removeprefix("tcp://").rpartition(":")
        return host, int(port)


@dataclass
class ProxiedBroker(TcpBroker):
    """A broker that every client reaches over a link of its own."""

    dice: random.Random = field(default_factory=lambda: random.Random(0))
    links: dict[str, Proxy] = field(default_factory=dict)

    async def connect(self, role: Role, name: str) -> Channel:
        if name not in self.links:
            self.links[name] = Proxy(self.address, self.dice)
            await self.links[name].start()
        return await Channel.connect(
            role=role, name=name, endpoint=lambda: self.links[name].endpoint, timeout_s=30.0
        )

    async def connect_directly(self, role: Role, name: str) -> Channel:
        """Past all links."""
        endpoint = read_endpoint(self.config, self.paths)
        return await Channel.connect(role=role, name=name, endpoint=endpoint, timeout_s=30.0)

    async def close_links(self) -> None:
        """No connection is left."""
        for link in self.links.values():
            await link.close()
        self.links.clear()


def working_cast(campaign: Campaign) -> list[Coroutine[Any, Any, None]]:
    """Four actors and two verifiers that take their time, so that leases are held."""
    connect, history, dice = campaign.broker.connect, campaign.history, campaign.dice
    samplers = [
        Sampler(connect, f"actor-{number}", history, random.Random(dice.random()), _THINK_S)
        for number in range(4)
    ]
    judges = [
        Judge(connect, f"verifier-{number}", history, random.Random(dice.random()), _THINK_S)
        for number in range(2)
    ]
    return [client.run() for client in (*samplers, *judges)]


Fault = Callable[[Proxy, float, random.Random], Awaitable[None]]


async def _partition(link: Proxy, hold_s: float, _: random.Random) -> None:
    link.block(*DIRECTIONS)
    await asyncio.sleep(hold_s)


async def _one_way(link: Proxy, hold_s: float, dice: random.Random) -> None:
    link.block(dice.choice(DIRECTIONS))
    await asyncio.sleep(hold_s)


async def _reset(link: Proxy, _: float, __: random.Random) -> None:
    link.reset()


async def _cut(link: Proxy, hold_s: float, dice: random.Random) -> None:
    link.weather[dice.choice(DIRECTIONS)].cut_after = dice.randint(1, 3000)
    await asyncio.sleep(hold_s)


async def _slow(link: Proxy, hold_s: float, dice: random.Random) -> None:
    for way in DIRECTIONS:
        link.weather[way] = Weather(delay_s=dice.uniform(0, 0.2), jitter_s=0.2)
    await asyncio.sleep(hold_s)


async def _drip(link: Proxy, hold_s: float, dice: random.Random) -> None:
    link.weather[dice.choice(DIRECTIONS)] = Weather(bytes_per_s=dice.uniform(500, 20_000))
    await asyncio.sleep(hold_s)


FAULTS: dict[str, Fault] = {
    "partition": _partition,
    "one-way partition": _one_way,
    "reset": _reset,
    "cut in a message": _cut,
    "delay and jitter": _slow,
    "drip": _drip,
}


@dataclass(frozen=True)
class BadLinks:
    """Trouble: faults on random links, several at once; partitions of 0.05 to 4 leases."""

    broker: ProxiedBroker
    num_faults: int
    at_once: int = 3

    async def __call__(self, campaign: Campaign) -> None:
        turns = iter(range(self.num_faults))
        await asyncio.gather(*(self._go_on(campaign, turns) for _ in range(self.at_once)))
        lost = campaign.log_lines("clients are gone")
        campaign.outcome.measures["given up as dead"] = sum(len(item["clients"]) for item in lost)

    async def _go_on(self, campaign: Campaign, turns: object) -> None:
        dice, links = campaign.dice, self.broker.links
        for _ in turns:  # type: ignore[attr-defined]  # shared by those that run at once
            link = links[dice.choice(sorted(links))]
            kind = dice.choice(list(FAULTS))
            hold_s = self.broker.dead_after_s * min(4.0, dice.expovariate(1.0))
            campaign.outcome.num_trials += 1
            campaign.outcome.faults[kind] += 1
            await FAULTS[kind](link, hold_s, dice)
            link.heal()
            await asyncio.sleep(dice.uniform(0.0, 0.1))


@dataclass(frozen=True)
class SlowLinks:
    """Trouble: every link is slow and uneven all the time; nobody may be taken for dead."""

    broker: ProxiedBroker
    delay_s: float
    seconds: float

    async def __call__(self, campaign: Campaign) -> None:
        while len(self.broker.links) < len(_NAMES):
            await asyncio.sleep(0.02)
        start_steps, start_s = len(campaign.history.steps), asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() - start_s < self.seconds:
            link = self.broker.links[campaign.dice.choice(_NAMES)]
            for way in DIRECTIONS:
                fast = campaign.dice.uniform(0.0, self.delay_s)
                link.weather[way] = Weather(delay_s=fast, jitter_s=self.delay_s - fast)
            campaign.outcome.num_trials += 1
            campaign.outcome.faults["delay and jitter"] += 1
            await asyncio.sleep(0.1)
        for link in self.broker.links.values():
            link.heal()
        campaign.outcome.measures["delay of a link, s"] = self.delay_s
        campaign.outcome.measures["steps under delay"] = len(campaign.history.steps) - start_steps
        for line in campaign.log_lines("clients are gone"):
            campaign.outcome.blame("false death", line["clients"])


_NAMES = ("actor-0", "actor-1", "actor-2", "actor-3", "learner", "verifier-0", "verifier-1")
