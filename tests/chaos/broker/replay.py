"""Conversations are repeated word for word, and processes come twice."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

from common.errors import RefusedError
from common.messages import FetchRollouts, Status
from common.types import Role, RolloutId
from tests.broker_process import BrokerProcess
from tests.chaos.broker.campaign import ENDLESS, Campaign, Outcome
from tests.chaos.broker.clients import Judge, Learner, Sampler
from tests.chaos.broker.network import ProxiedBroker
from tests.chaos.broker.nursery import Nursery, Wish

REPEATS = 10
_GREETING_BYTES = 64
_STEPS = 12
_SETTLE_S = 0.3
_FULL = 12
"""Groups that a run holds at most: with all of them verified nothing can be leased."""


def replay(folder: Path, seed: int) -> Outcome:
    """Record what an actor and a verifier said, then say all of it again, ten times."""
    broker = ProxiedBroker(folder, num_steps=ENDLESS, dead_after_s=5.0)
    broker.dice.seed(seed)
    campaign = Campaign(folder, "replay", seed, broker)
    started_s = time.monotonic()
    campaign.start()
    try:
        asyncio.run(_replay(campaign, broker))
    finally:
        campaign.close()
    campaign.outcome.wall_s = time.monotonic() - started_s
    return campaign.outcome


async def _replay(campaign: Campaign, broker: ProxiedBroker) -> None:
    history, outcome = campaign.history, campaign.outcome
    await campaign.until_ready()
    learner = await Learner.connect(broker)
    actor = Sampler(broker.connect, "actor-0", history, random.Random(1))
    verifier = Judge(broker.connect, "verifier-0", history, random.Random(2))
    workers = [asyncio.create_task(actor.run()), asyncio.create_task(verifier.run())]
    for _ in range(_STEPS):
        await learner.step()
    await _until_full(learner)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    before, arrays = await learner.status(), await _arrays(learner, history.rollouts)
    for name in ("actor-0", "verifier-0"):
        for words in list(broker.links[name].sent):
            for _ in range(REPEATS):
                outcome.num_trials += 1
                outcome.faults[f"conversation of a {name[:-2]} repeated"] += 1
                if not await _say(broker.address(), bytes(words)):
                    outcome.blame("idle", "the broker did not answer the repetition")
    await asyncio.sleep(_SETTLE_S)
    after = await learner.status()
    outcome.num_acknowledged = len(history.rollouts)
    outcome.num_steps = len(learner.steps)
    outcome.measures["bytes repeated"] = REPEATS * sum(
        len(words) for name in ("actor-0", "verifier-0") for words in broker.links[name].sent
    )
    outcome.measures["duplicates counted"] = after.duplicates - before.duplicates
    if _essence(before) != _essence(after):
        outcome.blame("changed", f"{_essence(before)} became {_essence(after)}")
    if await _arrays(learner, history.rollouts) != arrays:
        outcome.blame("changed", "arrays of acknowledged rollouts")
    await learner.channel.close()
    await broker.close_links()


async def _until_full(learner: Learner) -> None:
    async with asyncio.timeout(20.0):
        while True:
            status = await learner.status()
            waiting = {item.name: item.count for item in status.waiting}
            if waiting.get("groups_verified") == _FULL:
                return
            await asyncio.sleep(0.02)


async def _say(address: tuple[str, int], words: bytes) -> int:
    """Open a connection, say all of it, hear the answers, hang up; returns the bytes heard.

    The handshake is said in step with the other end, which takes no message before its end.
    """
    reader, writer = await asyncio.open_connection(*address)
    ready_end = _GREETING_BYTES + 2 + words[_GREETING_BYTES + 1]
    num_heard = 0
    try:
        writer.write(words[:_GREETING_BYTES])
        await reader.readexactly(_GREETING_BYTES)
        writer.write(words[_GREETING_BYTES:ready_end])
        _, size = await reader.readexactly(2)
        await reader.readexactly(size)
        writer.write(words[ready_end:])
        async with asyncio.timeout(_SETTLE_S):
            while heard := await reader.read(65536):
                num_heard += len(heard)
    except TimeoutError:
        pass  # it has said all that it has to say
    finally:
        writer.transport.abort()
    return num_heard


async def _arrays(learner: Learner, rollouts: set[RolloutId]) -> list[bytes]:
    """The bytes of all rollouts that are still kept, those of groups not yet in a step."""
    done = {group for step in learner.steps for group in step}
    left = tuple(sorted(one for one in rollouts if one.group_id not in done))
    try:
        reply = await learner.channel.request(FetchRollouts(rollout_ids=left))
    except RefusedError as error:
        return [str(error).encode()]
    return [bytes(frame) for frame in reply.frames]


def _essence(status: Status) -> tuple[object, ...]:
    waiting = [item for item in status.waiting if item.name.startswith("groups_")]
    return (status.groups, status.evicted, status.policy_step, status.newest_version, waiting)


def twins(folder: Path, num_trials: int, seed: int) -> Outcome:
    """A second process with the name of a live one is refused, and told who has it."""
    outcome = Outcome("twins", seed)
    started_s = time.monotonic()
    broker = BrokerProcess(folder, dead_after_s=30.0)
    campaign = Campaign(folder, "twins", seed, broker)
    campaign.start()
    nursery = Nursery()
    try:
        asyncio.run(_twins(campaign, nursery, num_trials, outcome))
    finally:
        nursery.close()
        campaign.close()
    outcome.wall_s = time.monotonic() - started_s
    return outcome


async def _twins(campaign: Campaign, nursery: Nursery, number: int, outcome: Outcome) -> None:
    await campaign.until_ready()
    names = [f"actor-{turn}" for turn in range(number)]
    endpoint_file = str(campaign.broker.paths.endpoint_file)
    pids = [
        nursery.start(Wish("actor", name, endpoint_file, str(campaign.folder))) for name in names
    ]
    await _until(lambda: len(campaign.log_lines('"registered"')) == number)
    started_s = time.monotonic()
    joining = [
        asyncio.create_task(_join_as(campaign, name, pid, outcome))
        for name, pid in zip(names, pids, strict=True)
    ]
    try:
        await _until(lambda: len(campaign.log_lines("refused a second process")) >= number)
    except TimeoutError:
        outcome.blame("twin", "not every second process was refused")
    outcome.measures["all refused after, s"] = time.monotonic() - started_s
    await asyncio.gather(*joining)


async def _join_as(campaign: Campaign, name: str, pid: int, outcome: Outcome) -> None:
    """Try to be ``name``, who is process ``pid``."""
    outcome.num_trials += 1
    outcome.faults["second process of one name"] += 1
    try:
        channel = await campaign.broker.connect(Role.ACTOR, name)
    except RefusedError as error:
        if not re.search(rf"{name} on \S+ \(pid \d+\).* on \S+ \(pid {pid}\)", error.reason):
            outcome.blame("mute", f"the refusal does not name both: {error.reason}")
    else:
        outcome.blame("twin", f"a second {name} was let in")
        await channel.close()


async def _until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20.0):
        while not is_true():
            await asyncio.sleep(0.01)
