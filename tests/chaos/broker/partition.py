"""Clients on another machine: a network namespace behind a veth pair, whose link goes down."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tests.chaos.broker.campaign import Campaign
from tests.chaos.broker.deaths import ROLES, client_wish
from tests.chaos.broker.namespace import command
from tests.chaos.broker.nursery import Nursery

NEAR, FAR = "10.77.0.1", "10.77.0.2"


def connect_namespaces(far_pid: int) -> None:
    """Join this namespace with that of ``far_pid``; the near end is ``near0``."""
    command("ip", "link", "set", "lo", "up")
    command("ip", "link", "add", "near0", "type", "veth", "peer", "name", "far0")
    command("ip", "link", "set", "far0", "netns", far_pid)
    command("ip", "addr", "add", f"{NEAR}/24", "dev", "near0")
    command("ip", "link", "set", "near0", "up")
    far = ("nsenter", "--target", str(far_pid), "--net")
    command("ip", "addr", "add", f"{FAR}/24", "dev", "far0", prefix=far)
    command("ip", "link", "set", "far0", "up", prefix=far)


@dataclass
class Partitions:
    """Trouble: the link to all actors and verifiers goes down and comes back.

    No packet of either side says so: connections stay open and silent, as when a switch dies.
    """

    num_times: int
    far: Nursery

    async def __call__(self, campaign: Campaign) -> None:
        for place, kind in enumerate(ROLES):
            self.far.start(client_wish(campaign, kind, f"{kind}-{place}", campaign.dice))
        for _ in range(self.num_times):
            await self._until_moving(campaign)
            await asyncio.sleep(campaign.dice.uniform(0.0, 0.3))
            down_s = campaign.broker.dead_after_s * min(4.0, campaign.dice.expovariate(0.7))
            campaign.outcome.num_trials += 1
            campaign.outcome.faults["link down"] += 1
            command("ip", "link", "set", "near0", "down")
            await asyncio.sleep(down_s)
            command("ip", "link", "set", "near0", "up")
        lost = campaign.log_lines("clients are gone")
        campaign.outcome.measures["given up as dead"] = sum(len(item["clients"]) for item in lost)

    async def _until_moving(self, campaign: Campaign) -> None:
        """Healed: the run takes a step again."""
        started_s, steps = asyncio.get_running_loop().time(), len(campaign.history.steps)
        async with asyncio.timeout(30.0):
            while len(campaign.history.steps) == steps:
                await asyncio.sleep(0.01)
        campaign.outcome.recovery_s.append(asyncio.get_running_loop().time() - started_s)
