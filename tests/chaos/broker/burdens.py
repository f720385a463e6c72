"""What one bad group or one bad client costs everybody else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.broker.campaign import ENDLESS, Campaign, Outcome
from tests.chaos.broker.clients import Judge, Sampler
from tests.chaos.broker.logged import LoggedBroker

NUM_ACTORS = 8
MAX_ERRORS = 3
_ACTOR_S = 0.08
_JUDGE_S = 0.005
_SLOWNESS = 100
_EVERY = 100
"""One group in so many is poisonous."""


@dataclass(frozen=True)
class Quiet:
    """No trouble but what the cast brings along; counts the steps of some seconds."""

    seconds: float

    async def __call__(self, campaign: Campaign) -> None:
        while not campaign.history.steps:
            await asyncio.sleep(0.01)
        before = len(campaign.history.steps)
        await asyncio.sleep(self.seconds)
        steps = len(campaign.history.steps) - before
        campaign.outcome.measures["steps/s"] = steps / self.seconds


def cast_of(
    *, slow: bool = False, poisonous: Callable[[int], bool] = lambda _: False
) -> Callable[[Campaign], list[Coroutine[Any, Any, None]]]:
    """Eight actors, one of them 100 times slower if ``slow``, and three verifiers."""

    def cast(campaign: Campaign) -> list[Coroutine[Any, Any, None]]:
        connect, history, dice = campaign.broker.connect, campaign.history, campaign.dice
        think_s = [_ACTOR_S] * NUM_ACTORS
        if slow:
            think_s[0] *= _SLOWNESS
        samplers = [
            Sampler(
                connect,
                f"actor-{number}",
                history,
                random.Random(dice.random()),
                seconds,
                max_groups=1,
            )
            for number, seconds in enumerate(think_s)
        ]
        judges = [
            Judge(
                connect,
                f"verifier-{number}",
                history,
                random.Random(dice.random()),
                _JUDGE_S,
                poisonous=poisonous,
            )
            for number in range(3)
        ]
        return [client.run() for client in (*samplers, *judges)]

    return cast


def poison(folder: Path, seconds: float, seed: int) -> Outcome:
    """One group in a hundred fails at whoever verifies it."""

    def poisonous(group_id: int) -> bool:
        return group_id % _EVERY == _EVERY // 10

    usual = _run(folder / "usual", "poison", seed, seconds, cast_of())
    outcome = _run(folder / "burdened", "poison", seed, seconds, cast_of(poisonous=poisonous))
    log = (folder / "burdened" / "broker.log").read_text()
    _compare(outcome, usual)
    outcome.num_trials = outcome.faults["poisonous group"]
    if "group dead-lettered" not in log:
        outcome.blame("endless", "no poisonous group was given up")
    return outcome


def straggler(folder: Path, seconds: float, seed: int, staleness: str) -> Outcome:
    """One actor of eight is a hundred times slower and keeps its leases.

    Under ``wait`` the batch waits for the groups that it holds, so there is no goal for it.
    """
    name = f"slow/{staleness}"
    usual = _run(folder / "usual", name, seed, seconds, cast_of(), staleness)
    outcome = _run(folder / "burdened", name, seed, seconds, cast_of(slow=True), staleness)
    _compare(outcome, usual)
    outcome.num_trials = 1
    outcome.faults["actor 100 times slower"] = 1
    return outcome


def _run(
    folder: Path,
    name: str,
    seed: int,
    seconds: float,
    cast: Callable[[Campaign], list[Coroutine[Any, Any, None]]],
    staleness: str = "wait",
) -> Outcome:
    folder.mkdir()
    policy = (f'staleness = "{staleness}"',)
    broker = LoggedBroker(folder, num_steps=ENDLESS, learner_settings=policy)
    campaign = Campaign(folder, name, seed, broker)
    outcome = campaign.run(Quiet(seconds), cast)
    for line in campaign.log_lines("group dead-lettered"):
        outcome.faults["poisonous group"] += 1
        if len(line["errors"]) < MAX_ERRORS:
            outcome.blame("silent", f"group {line['group']} was given up with {line['errors']}")
    return outcome


def _compare(outcome: Outcome, usual: Outcome) -> None:
    outcome.violations += usual.violations
    outcome.num_acknowledged += usual.num_acknowledged
    pace, usual_pace = outcome.measures.get("steps/s"), usual.measures.get("steps/s")
    if pace is not None and usual_pace:
        outcome.measures["throughput loss"] = 1 - pace / usual_pace
