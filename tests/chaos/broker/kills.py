"""The broker dies again and again: at random moments, and at every numbered operation."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.chaos.broker.campaign import Campaign
from tests.chaos.broker.knife import Cut, How

_WAYS: tuple[How, ...] = ("before", "half", "after")


@dataclass(frozen=True)
class Death:
    """How one life is to end: at a random moment, or at a numbered operation."""

    after_s: float = 0.0
    cut: Cut | None = None


def random_deaths(number: int, dice: random.Random) -> Iterator[Death]:
    """SIGKILL at moments spread over start-up, recovery and service.

    Half of them after a random time, half at a random operation, which is where the work is.
    """
    for turn in range(number):
        if turn % 2:
            yield Death(cut=Cut(dice.randint(1, 600), dice.choice(_WAYS)))
        else:
            yield Death(after_s=dice.expovariate(1 / 0.2))


def numbered_deaths(last: int, ways: Iterable[How] = _WAYS) -> Iterator[Death]:
    """Every operation from the first to ``last``, each in every way."""
    for number in range(1, last + 1):
        for how in ways:
            yield Death(cut=Cut(number, how))


@dataclass(frozen=True)
class Kills:
    """Trouble: all of ``deaths``, one after the other."""

    deaths: Sequence[Death]

    async def __call__(self, campaign: Campaign) -> None:
        while not campaign.history.steps:  # a client that never joined would give up, not wait
            await asyncio.sleep(0.01)
        campaign.kill()
        await campaign.until_dead()
        for death in self.deaths:
            campaign.start(death.cut)
            campaign.outcome.num_trials += 1
            campaign.outcome.faults[_kind(death)] += 1
            if death.cut is None:
                await _live(campaign, death.after_s)
                campaign.kill()
            await campaign.until_dead()
        campaign.start()
        campaign.outcome.recovery_s.append(await campaign.until_ready())


async def _live(campaign: Campaign, seconds: float) -> None:
    """Let the broker live so long; note how fast it was back, if it was."""
    ready = asyncio.ensure_future(campaign.until_ready())
    await asyncio.sleep(seconds)
    if ready.done():
        campaign.outcome.recovery_s.append(ready.result())
    ready.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ready


def _kind(death: Death) -> str:
    return "kill at a moment" if death.cut is None else f"kill {death.cut.how} an operation"
