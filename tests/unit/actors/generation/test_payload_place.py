"""Rollouts in the memory of their actor: the byte cap, and what is given up to keep it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
import structlog

from actors.generation import payload_place
from actors.generation.payload_place import InActor
from common.content_hash import content_hash
from common.metrics import Metrics
from common.payloads.backing import MemoryBacking
from tests.broker_process import arrays_of
from tests.builders import rollout_header
from tests.unit.common.payloads.scripted_servers import ScriptedBroker

ROLLOUT_BYTES = 4 * (3 + 5 + 5)
GROUP_SIZE = 2


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_place, "_RECHECK_S", 0.001)


def in_actor(broker: ScriptedBroker, *, max_groups: int) -> tuple[InActor, MemoryBacking, Metrics]:
    backing, metrics = MemoryBacking(), Metrics()
    place = InActor(
        backing,
        broker,
        actor="actor-0",
        max_bytes=max_groups * GROUP_SIZE * ROLLOUT_BYTES,
        max_rollout_bytes=ROLLOUT_BYTES,
        group_size=GROUP_SIZE,
        metrics=metrics,
        log=structlog.get_logger(),
    )
    return place, backing, metrics


async def keep(place: InActor, group_id: int) -> None:
    for index in range(GROUP_SIZE):
        header = rollout_header(group_id=group_id, index=index)
        frames = arrays_of(header.rollout_id).frames()
        submission = await place.keep(header, frames)
        assert submission.frames == ()
        here = msgspec.structs.replace(header, store="actor-0")
        assert submission.message.rollout == here
        assert submission.message.content_hash == content_hash(header, frames)


def test_sampling_waits_for_room_and_goes_on_when_a_group_has_ended() -> None:
    broker = ScriptedBroker()
    place, backing, metrics = in_actor(broker, max_groups=2)

    async def run() -> int:
        await keep(place, 0)
        assert await place.wait_for_room(lambda: 0) == 1
        await keep(place, 1)
        waiting = asyncio.ensure_future(place.wait_for_room(lambda: 0))
        while len(broker.questions) < 3:
            await asyncio.sleep(0.001)
        assert not waiting.done()
        broker.ended = {0}
        return await asyncio.wait_for(waiting, 5.0)

    assert asyncio.run(run()) == 1
    assert backing.group_ids() == (1,)
    blocked = metrics.registry.get_sample_value("headrace_payload_blocked_seconds_total")
    assert blocked is not None
    assert blocked > 0


def test_room_is_taken_before_sampling_so_that_the_cap_holds_when_it_ends() -> None:
    place, backing, _ = in_actor(ScriptedBroker(), max_groups=3)

    async def run() -> None:
        await keep(place, 0)
        assert place.room_groups(num_unfinished=0) == 2
        assert place.room_groups(num_unfinished=1) == 1
        assert place.room_groups(num_unfinished=2 * GROUP_SIZE) == 0

    asyncio.run(run())
    assert backing.num_bytes == GROUP_SIZE * ROLLOUT_BYTES


def test_under_pressure_groups_go_that_only_a_replay_would_need() -> None:
    broker = ScriptedBroker(stepped={0})
    place, backing, _ = in_actor(broker, max_groups=1)

    async def run() -> int:
        await keep(place, 0)
        return await asyncio.wait_for(place.wait_for_room(lambda: 0), 5.0)

    assert asyncio.run(run()) == 1
    assert backing.group_ids() == ()


def test_a_rollout_that_the_broker_refused_frees_its_memory() -> None:
    place, backing, _ = in_actor(ScriptedBroker(), max_groups=1)
    asyncio.run(keep(place, 0))
    for index in range(GROUP_SIZE):
        place.refuse(rollout_header(index=index).rollout_id)
    assert backing.num_bytes == 0
