"""Producer and consumer of payload servers: failover, patience, loss, and bounded bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from msgspec import structs

from common.payloads import client, producer
from common.payloads.client import ByteRoom, PayloadClient, Wanted
from common.payloads.placement import ranked_stores
from common.payloads.producer import StoreProducer
from common.types import RolloutHeader, RolloutId
from tests.broker_process import arrays_of
from tests.builders import rollout_header
from tests.unit.common.payloads.scripted_servers import ScriptedBroker, ScriptedServer

NAMES = ("store-0", "store-1")


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RETRY_S", 0.001)
    monkeypatch.setattr(producer, "RETRY_S", 0.001)


def two_stores() -> ScriptedBroker:
    return ScriptedBroker({name: ScriptedServer() for name in NAMES})


def consumer(
    broker: ScriptedBroker, *, patience_s: float = 5.0, gone_with_its_server: bool = False
) -> PayloadClient:
    return PayloadClient(
        broker,
        broker.links(),
        patience_s=patience_s,
        gone_with_its_server=gone_with_its_server,
    )


def put_all(broker: ScriptedBroker, headers: Sequence[RolloutHeader]) -> list[str]:
    async def put() -> list[str]:
        sender = StoreProducer(broker.links())
        puts = (sender.put(header, arrays_of(header.rollout_id).frames()) for header in headers)
        return [store for store, _ in await asyncio.gather(*puts)]

    return asyncio.run(put())


def wanted_of(headers: Sequence[RolloutHeader], stores: Sequence[str]) -> list[Wanted]:
    return [
        Wanted(header.rollout_id, store, sum(header.frame_bytes()))
        for header, store in zip(headers, stores, strict=True)
    ]


def headers_of(number: int) -> list[RolloutHeader]:
    return [rollout_header(group_id=group_id) for group_id in range(number)]


def test_rollouts_come_back_in_order_from_all_stores() -> None:
    broker = two_stores()
    headers = headers_of(40)
    stores = put_all(broker, headers)
    assert set(stores) == set(NAMES)
    assert stores == [ranked_stores(header.rollout_id.group_id, NAMES)[0] for header in headers]
    fetched = asyncio.run(consumer(broker).fetch(wanted_of(headers, stores)))
    for header, item in zip(headers, fetched, strict=True):
        assert item is not None
        assert item.header == header
        sent = [bytes(frame) for frame in arrays_of(header.rollout_id).frames()]
        assert [bytes(frame) for frame in item.frames] == sent
    assert broker.lost == []


def test_what_gathers_while_requests_are_under_way_goes_out_in_few_requests() -> None:
    broker = ScriptedBroker({"store-0": ScriptedServer()})
    put_all(broker, headers_of(100))
    assert len(broker.servers["store-0"].requests) <= 100 // 2


@pytest.mark.parametrize("failure", ["timeout", "full"])
def test_a_put_that_fails_goes_to_the_next_store(failure: str) -> None:
    broker = two_stores()
    first, second = ranked_stores(7, NAMES)
    broker.servers[first].num_timeouts = 100 if failure == "timeout" else 0
    broker.servers[first].refusal = "full" if failure == "full" else ""
    assert put_all(broker, [rollout_header(group_id=7)]) == [second]


def test_a_put_waits_until_a_store_has_room() -> None:
    broker = ScriptedBroker({"store-0": ScriptedServer(num_timeouts=5)})
    assert put_all(broker, [rollout_header()]) == ["store-0"]


def test_a_store_that_is_away_for_a_while_has_lost_nothing() -> None:
    broker = two_stores()
    headers = headers_of(10)
    stores = put_all(broker, headers)
    broker.unknown = set(NAMES)

    async def come_back() -> list[bool]:
        fetching = asyncio.ensure_future(consumer(broker).fetch(wanted_of(headers, stores)))
        for server in broker.servers.values():
            server.num_timeouts = 3
        broker.num_lookups = 0
        while broker.num_lookups < 10:
            await asyncio.sleep(0)
        assert not fetching.done()
        broker.unknown = set()
        return [item is not None for item in await fetching]

    assert asyncio.run(come_back()) == [True] * 10
    assert broker.lost == []


def test_a_store_that_stays_away_is_reported_after_the_patience() -> None:
    broker = two_stores()
    headers = headers_of(10)
    stores = put_all(broker, headers)
    broker.servers["store-0"].num_timeouts = 1 << 30
    fetching = consumer(broker, patience_s=0.05).fetch(wanted_of(headers, stores))
    fetched = asyncio.run(fetching)
    assert [item is None for item in fetched] == [store == "store-0" for store in stores]
    gone = [h.rollout_id for h, store in zip(headers, stores, strict=True) if store == "store-0"]
    assert broker.lost == gone


def test_what_a_server_says_it_does_not_hold_is_lost_at_once() -> None:
    broker = two_stores()
    headers = headers_of(3)
    stores = put_all(broker, headers)
    broker.servers[stores[1]].backing.drop_groups([1])
    fetched = asyncio.run(consumer(broker, patience_s=60.0).fetch(wanted_of(headers, stores)))
    assert [item is None for item in fetched] == [False, True, False]
    assert broker.lost == [RolloutId(group_id=1, index=0, attempt=1)]


def replaced_by_another(broker: ScriptedBroker, known: RolloutHeader) -> RolloutHeader:
    """Put a rollout of another actor in the place of ``known``; returns ``known`` as handed over.

    A broker that forgot a lease with its machine has granted the same attempt to both.
    """
    (store,) = put_all(broker, [known])
    put_all(broker, [structs.replace(known, actor="actor-1", generation_s=0.25)])
    return structs.replace(known, store=store)


def test_another_rollout_under_the_same_id_is_reported_lost_and_never_taken() -> None:
    broker = ScriptedBroker({"store-0": ScriptedServer()})
    known = replaced_by_another(broker, rollout_header())
    fetched = asyncio.run(consumer(broker, patience_s=60.0).fetch([Wanted.of(known)]))
    assert fetched == [None]
    assert broker.lost == [known.rollout_id]


def test_a_rollout_that_is_put_again_is_the_same_rollout_wherever_it_lies() -> None:
    broker = ScriptedBroker({"store-0": ScriptedServer()})
    header = rollout_header()
    put_all(broker, [header, header])
    wanted = Wanted.of(structs.replace(header, store="store-0"))
    (fetched,) = asyncio.run(consumer(broker).fetch([wanted]))
    assert fetched is not None
    assert fetched.header == header
    assert broker.lost == []


def test_an_actor_that_the_broker_no_longer_knows_took_its_rollouts_with_it() -> None:
    broker = ScriptedBroker({"actor-0": ScriptedServer()}, unknown={"actor-0"})
    header = rollout_header()
    client_of_actor = consumer(broker, patience_s=60.0, gone_with_its_server=True)
    fetching = client_of_actor.fetch(wanted_of([header], ["actor-0"]))
    assert asyncio.run(asyncio.wait_for(fetching, 5.0)) == [None]
    assert broker.lost == [header.rollout_id]


def test_bytes_under_way_stay_below_their_bound_and_a_larger_request_goes_alone() -> None:
    under_way: list[int] = []
    most: list[int] = []

    async def hold(room: ByteRoom, num_bytes: int) -> None:
        async with room.taken(num_bytes):
            under_way.append(num_bytes)
            most.append(sum(under_way))
            await asyncio.sleep(0)
            under_way.remove(num_bytes)

    async def run() -> None:
        room = ByteRoom(100)
        await asyncio.gather(*(hold(room, size) for size in (40, 40, 40, 300, 10, 90, 20)))

    asyncio.run(run())
    assert len(most) == 7
    assert all(total <= 100 or total == 300 for total in most)
