"""How fast a broker is back: a large journal of live rollouts, kill -9, time until it serves."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.codec import Buffer
from common.messages import LeasePrompts, PromptLeases, SubmitRollout
from common.transport import Channel
from common.types import Role, RolloutHeader, RolloutId
from tests.builders import rollout_header, version
from tests.chaos.broker.campaign import Outcome
from tests.chaos.broker.logged import LoggedBroker

GOAL_S_PER_GB = 2.0
_SMALLEST_BYTES = 4 << 10
_LARGEST_BYTES = 256 << 10
_TOKEN_BYTES = 8  # an id and a log-probability
_SAMPLES = 2
_WINDOW = 32
_WAIT_S = 120.0
_STARTS = 5


def sized_rollout(rollout_id: RolloutId, num_bytes: int) -> tuple[RolloutHeader, Sequence[Buffer]]:
    """A rollout with about ``num_bytes`` of arrays; its contents follow from its id."""
    num_tokens = max(1, num_bytes // _TOKEN_BYTES)
    header = rollout_header(
        group_id=rollout_id.group_id,
        index=rollout_id.index,
        attempt=rollout_id.attempt,
        num_completion=num_tokens,
    )
    token = (1000 * rollout_id.group_id + rollout_id.index).to_bytes(4, "little")
    return header, [bytes(12), token * num_tokens, bytes(4 * num_tokens)]


async def lease_ids(channel: Channel, max_groups: int = _WINDOW) -> list[RolloutId]:
    """Some more rollouts to sample; none when nobody may sample more for now."""
    ask = LeasePrompts(serving=version(0), max_groups=max_groups, wait_s=1.0)
    reply = (await channel.request(ask)).message
    assert isinstance(reply, PromptLeases)
    return [
        RolloutId(group_id=item.lease.group_id, index=index, attempt=item.lease.attempt)
        for item in reply.leases
        for index in item.lease.indices
    ]


async def submit_sized(channel: Channel, rollout_id: RolloutId, num_bytes: int) -> int:
    """Submit one rollout; returns its bytes once it is acknowledged."""
    header, frames = sized_rollout(rollout_id, num_bytes)
    await channel.request(SubmitRollout(rollout=header), frames, timeout_s=_WAIT_S)
    return sum(memoryview(frame).nbytes for frame in frames)


def collecting_broker(folder: Path, num_groups: int, *settings: str) -> LoggedBroker:
    """A broker that keeps whatever it is sent until somebody collects it."""
    broker = LoggedBroker(
        folder,
        kind="collect",
        dead_after_s=60.0,
        settings=(f"max_outstanding_groups = {num_groups}", "heartbeat_s = 2.0", *settings),
    )
    text = broker.run_file.read_text().replace("num_prompts = 10", f"num_prompts = {num_groups}")
    broker.run_file.write_text(text)
    return broker


def recovery(folder: Path, num_bytes: int, seed: int) -> Outcome:
    """Fill a broker with ``num_bytes`` of live rollouts, kill it, start it."""
    outcome = Outcome("recovery", seed, num_trials=1)
    started_s = time.monotonic()
    mean_bytes = (_SMALLEST_BYTES + _LARGEST_BYTES) // 2
    num_groups = max(8, num_bytes // mean_bytes // _SAMPLES)
    broker = collecting_broker(folder, num_groups)
    try:
        empty_s = _starts(broker)
        num_sent = asyncio.run(_fill(broker, num_bytes, random.Random(seed), outcome))
        outcome.recovery_s = _starts(broker)
        outcome.faults["kill with a full journal"] = len(outcome.recovery_s)
    finally:
        broker.kill()
    gigabytes = num_sent / 1e9
    outcome.measures["live GB"] = gigabytes
    empty, full = min(empty_s), min(outcome.recovery_s)
    outcome.measures["start of an empty broker, s"] = empty
    outcome.measures["start with it, s"] = full
    outcome.measures["s per GB"] = (full - empty) / gigabytes
    outcome.wall_s = time.monotonic() - started_s
    return outcome


def _starts(broker: LoggedBroker) -> list[float]:
    """Seconds of some starts, each after a SIGKILL; the last life goes on."""
    seconds = []
    for _ in range(_STARTS):
        if broker.process is not None:
            broker.kill()
        broker.start()
        seconds.append(asyncio.run(_registered_in(broker)))
    return seconds


async def _registered_in(broker: LoggedBroker) -> float:
    """Seconds until a client is registered, from a start that was just made."""
    started_s = time.monotonic()
    probe = await broker.connect(Role.SUPERVISOR, "probe")
    await probe.close()
    return time.monotonic() - started_s


async def _fill(broker: LoggedBroker, num_bytes: int, dice: random.Random, outcome: Outcome) -> int:
    """Submit rollouts until the broker holds so much; returns the bytes acknowledged."""
    channel = await broker.connect(Role.ACTOR, "actor-0")
    total = 0
    while total < num_bytes:
        ids = await lease_ids(channel)
        if not ids:
            break
        for some in _slices(ids):
            sizes = [dice.randint(_SMALLEST_BYTES, _LARGEST_BYTES) for _ in some]
            sent = await asyncio.gather(
                *(submit_sized(channel, one, size) for one, size in zip(some, sizes, strict=True))
            )
            total += sum(sent)
            outcome.num_acknowledged += len(sent)
    await channel.close()
    return total


def _slices(ids: list[RolloutId]) -> Iterator[list[RolloutId]]:
    for start in range(0, len(ids), _WINDOW):
        yield ids[start : start + _WINDOW]
