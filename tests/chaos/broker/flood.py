"""More rollouts than the broker may hold in memory, from eight processes, and nobody to take them.

``python -m tests.chaos.broker.flood CONFIG NUMBER GROUPS`` is one producer; it prints what it was
told once everything that it may sample is acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from common.config_loader import load_config, run_paths
from common.endpoints import read_endpoint
from common.errors import InfraError
from common.messages import (
    CommitStep,
    FetchRollouts,
    Groups,
    LeaseRollouts,
    PullGroups,
    RolloutLeases,
    SubmitVerdict,
)
from common.transport import Channel
from common.types import Role, RolloutId, Verdict, VerdictStatus
from tests.broker_process import REPOSITORY
from tests.chaos.broker.campaign import Outcome
from tests.chaos.broker.logged import LoggedBroker
from tests.chaos.broker.recovery import collecting_broker, lease_ids, sized_rollout, submit_sized

NUM_PRODUCERS = 8
_ROLLOUT_BYTES = 256 << 10
_BATCH = 16
_LEAST_JOURNAL_BYTES = 3 << 26
"""Three segments, the least that a broker is started with."""
LEAST_OFFERED_BYTES = 2 * _LEAST_JOURNAL_BYTES
"""The journal is full before consumers come, so that producers must wait."""
_BLOCKED_S = 1.0
_STILL_S = 20.0
"""Nothing came for so long: it never will."""


@dataclass(frozen=True)
class Flood:
    """How much is offered, against what cap."""

    offered_bytes: int
    memory_bytes: int

    @property
    def num_groups(self) -> int:
        """Groups of two rollouts."""
        return self.offered_bytes // _ROLLOUT_BYTES // 2


def flood(folder: Path, size: Flood, seed: int) -> Outcome:
    """Offer everything at once, watch the memory, then let consumers take all of it."""
    outcome = Outcome("flood", seed, num_trials=1)
    started_s = time.monotonic()
    broker = collecting_broker(
        folder,
        size.num_groups,
        f"max_memory_bytes = {size.memory_bytes}",
        f"max_journal_bytes = {max(_LEAST_JOURNAL_BYTES, size.offered_bytes // 2)}",
    )
    broker.start()
    try:
        broker.wait_endpoint()
        producers = [_start(broker, number, size) for number in range(NUM_PRODUCERS)]
        try:
            asyncio.run(_consume(broker, size, producers, outcome))
        except InfraError as error:
            outcome.blame("stopped", error)
        finally:
            for producer in producers:
                producer.kill()
                producer.communicate()
        outcome.measures["VmHWM, MB"] = broker.memory_bytes() / 1e6
        outcome.measures["cap, MB"] = size.memory_bytes / 1e6
        if broker.memory_bytes() > size.memory_bytes:
            outcome.blame("memory", f"{broker.memory_bytes()} of {size.memory_bytes} bytes")
    finally:
        broker.kill()
    outcome.wall_s = time.monotonic() - started_s
    return outcome


async def _consume(
    broker: LoggedBroker,
    size: Flood,
    producers: list[subprocess.Popen[str]],
    outcome: Outcome,
) -> None:
    """Wait until every producer is blocked, then verify and collect until everything has come."""
    blocked = [await asyncio.to_thread(_report, one) for one in producers]
    outcome.measures["producers blocked"] = sum(report["blocked_for_s"] > 0 for report in blocked)
    if not outcome.measures["producers blocked"]:
        outcome.blame("mute", "no producer was blocked, or none can say for how long")
    outcome.measures["VmHWM without consumers, MB"] = broker.memory_bytes() / 1e6
    collected = await _collect(broker, size.num_groups, outcome)
    reports = [await asyncio.to_thread(_report, one) for one in producers]
    acknowledged = {
        RolloutId(group_id=group, index=index, attempt=attempt)
        for report in reports
        for group, index, attempt in report["acknowledged"]
    }
    outcome.num_acknowledged = len(acknowledged)
    outcome.measures["offered, MB"] = len(acknowledged) * _ROLLOUT_BYTES / 1e6
    outcome.measures["blocked, s"] = max(report["blocked_total_s"] for report in reports)
    for rollout_id in acknowledged - collected:
        outcome.blame("lost", rollout_id)


async def _collect(broker: LoggedBroker, num_groups: int, outcome: Outcome) -> set[RolloutId]:
    verifier = await broker.connect(Role.VERIFIER, "verifier-0")
    collector = await broker.connect(Role.COLLECTOR, "collector")
    judging = asyncio.create_task(_judge(verifier))
    collected: set[RolloutId] = set()
    num_left = num_groups
    try:
        async with asyncio.timeout(_STILL_S) as limit:
            while num_left:
                pull = PullGroups(policy_step=0, max_groups=_BATCH, wait_s=1.0)
                groups = (await collector.request(pull)).message
                assert isinstance(groups, Groups)
                ids = tuple(item.rollout.rollout_id for g in groups.groups for item in g.rollouts)
                await _check(collector, ids, outcome)
                collected.update(ids)
                group_ids = tuple(group.group_id for group in groups.groups)
                await collector.request(
                    CommitStep(incarnation=0, policy_step=0, group_ids=group_ids)
                )
                num_left -= len(group_ids)
                if group_ids:
                    limit.reschedule(asyncio.get_running_loop().time() + _STILL_S)
    except TimeoutError:
        raise InfraError(f"{num_left} of {num_groups} groups did not come") from None
    finally:
        judging.cancel()
        await asyncio.gather(judging, return_exceptions=True)
        await verifier.close()
        await collector.close()
    return collected


async def _check(channel: Channel, ids: tuple[RolloutId, ...], outcome: Outcome) -> None:
    """The bytes are those that were sent."""
    if not ids:
        return
    reply = await channel.request(FetchRollouts(rollout_ids=ids))
    for place, rollout_id in enumerate(ids):
        _, sent = sized_rollout(rollout_id, _ROLLOUT_BYTES)
        if [bytes(frame) for frame in reply.frames[3 * place : 3 * place + 3]] != sent:
            outcome.blame("unexpected", f"{rollout_id} came back with other bytes")


async def _judge(channel: Channel) -> None:
    verdict = Verdict(status=VerdictStatus.GRADED, reward=1.0)
    while True:
        ask = LeaseRollouts(max_rollouts=_BATCH, wait_s=1.0)
        reply = (await channel.request(ask)).message
        assert isinstance(reply, RolloutLeases)
        for lease in reply.leases:
            await channel.request(
                SubmitVerdict(
                    rollout_id=lease.rollout.rollout_id,
                    verify_attempt=lease.verify_attempt,
                    verdict=verdict,
                )
            )


def _start(broker: LoggedBroker, number: int, size: Flood) -> subprocess.Popen[str]:
    share = str(size.num_groups // NUM_PRODUCERS + 1)
    words = ["tests.chaos.broker.flood", str(broker.run_file), str(number), share]
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


def _report(producer: subprocess.Popen[str]) -> dict[str, Any]:
    assert producer.stdout is not None
    report: dict[str, Any] = json.loads(producer.stdout.readline())
    return report


async def _tell_when_blocked(channel: Channel) -> None:
    while channel.blocked_for_s < _BLOCKED_S:
        await asyncio.sleep(0.05)
    print(json.dumps({"blocked_for_s": channel.blocked_for_s}), flush=True)


async def _produce(run_file: Path, number: int, max_groups: int) -> None:
    """Submit whatever may be sampled until there is nothing more; say what was acknowledged."""
    config = load_config(run_file)
    endpoint = read_endpoint(config, run_paths(config))
    channel = await Channel.connect(role=Role.ACTOR, name=f"actor-{number}", endpoint=endpoint)
    acknowledged: list[tuple[int, int, int]] = []
    telling = asyncio.create_task(_tell_when_blocked(channel))
    while ids := await lease_ids(channel, max_groups=max_groups):
        await asyncio.gather(*(submit_sized(channel, one, _ROLLOUT_BYTES) for one in ids))
        acknowledged += [(one.group_id, one.index, one.attempt) for one in ids]
    if not telling.done():
        telling.cancel()
        print(json.dumps({"blocked_for_s": 0.0}), flush=True)
    told = {"acknowledged": acknowledged, "blocked_total_s": channel.blocked_total_s}
    print(json.dumps(told), flush=True)
    await asyncio.Event().wait()  # whoever started this ends it


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(_produce(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
