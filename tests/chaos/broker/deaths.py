"""Clients die: killed, or stopped for longer than their lease and then continued."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.chaos.broker.campaign import Campaign
from tests.chaos.broker.nursery import Nursery, Wish, signal_client

_THINK_S = 0.02
Kind = Literal["actor", "verifier"]
ROLES: tuple[Kind, ...] = ("actor", "actor", "actor", "actor", "verifier", "verifier", "verifier")


def nobody(_: Campaign) -> list[Coroutine[Any, Any, None]]:
    """A cast without clients in this process."""
    return []


@dataclass
class Deaths:
    """Trouble: each client process suffers one end after the other, all clients at once.

    A killed client is replaced under its own name, as a supervisor would, or under another one, as
    when its machine is gone; the lease of the latter runs out.
    """

    num_trials: int
    nursery: Nursery = field(init=False)

    async def __call__(self, campaign: Campaign) -> None:
        self.nursery = Nursery()
        campaign.at_end.callback(self.nursery.close)
        turns = iter(range(self.num_trials))
        await asyncio.gather(
            *(self._suffer(campaign, kind, place, turns) for place, kind in enumerate(ROLES))
        )

    async def _suffer(
        self, campaign: Campaign, kind: Kind, place: int, turns: Iterator[int]
    ) -> None:
        """The lives of one client and its successors; the last one lives on."""
        dice = random.Random(f"{campaign.outcome.seed}.{place}")
        name = f"{kind}-{place}"
        pid = self._start(campaign, kind, name, dice)
        for turn in turns:
            await asyncio.sleep(dice.uniform(0.1, 0.6))
            campaign.outcome.num_trials += 1
            if dice.random() < 0.5:
                campaign.outcome.faults[f"{kind} stopped and continued"] += 1
                signal_client(pid, signal.SIGSTOP)
                await asyncio.sleep(campaign.broker.dead_after_s * dice.uniform(0.8, 2.0))
                signal_client(pid, signal.SIGCONT)
            else:
                signal_client(pid, signal.SIGKILL)
                same = dice.random() < 0.5
                campaign.outcome.faults[f"{kind} killed, {'same' if same else 'new'} name"] += 1
                name = name if same else f"{kind}-{place}-{turn}"
                pid = self._start(campaign, kind, name, dice)

    def _start(self, campaign: Campaign, kind: Kind, name: str, dice: random.Random) -> int:
        return self.nursery.start(client_wish(campaign, kind, name, dice))


def client_wish(campaign: Campaign, kind: Kind, name: str, dice: random.Random) -> Wish:
    """A client process of this campaign."""
    return Wish(
        kind=kind,
        name=name,
        endpoint_file=str(campaign.broker.paths.endpoint_file),
        folder=str(campaign.folder),
        seed=dice.getrandbits(32),
        think_s=_THINK_S,
    )
