"""A learner rank fetches its share straight from two payload servers, over real sockets."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from common.arrays import RolloutArrays
from common.broker_socket import BrokerSocket
from common.config import StoresConfig
from common.messages import (
    Ack,
    AnyMessage,
    GetStores,
    Registered,
    ReportLost,
    StoreAddress,
    Stores,
)
from common.metrics import Metrics
from common.payloads.backing import MemoryBacking
from common.payloads.server import PayloadServer
from common.payloads.service import PayloadService
from common.types import RolloutHeader, RolloutId
from learner.batches.chunk import Chunk
from learner.checkpoints.lineage import Lineage
from tests.unit.learner.fake_broker import FakeBroker, random_rollout
from tests.unit.learner.small_run import GROUP_SIZE, VOCAB_SIZE, small_config, small_run

NAMES = ("store-0", "store-1")


@dataclass
class BrokerWithStores(FakeBroker):
    """Its groups lie in two stores, index by index."""

    addresses: dict[str, str] = field(default_factory=dict)
    lost: list[RolloutId] = field(default_factory=list)

    def on_GetStores(self, message: GetStores) -> AnyMessage:
        """Where they are."""
        return Stores(
            stores=tuple(
                StoreAddress(name=name, endpoint=self.addresses[name]) for name in message.names
            )
        )

    def on_ReportLost(self, message: ReportLost) -> AnyMessage:
        """The group is taken back, and will be there again later."""
        self.lost += message.rollout_ids
        gone = {rollout_id.group_id for rollout_id in message.rollout_ids}
        self.handed_over = [group_id for group_id in self.handed_over if group_id not in gone]
        return Ack()

    def _header(self, rollout_id: RolloutId, arrays: RolloutArrays) -> RolloutHeader:
        store = NAMES[rollout_id.index % 2]
        return msgspec.structs.replace(super()._header(rollout_id, arrays), store=store)


@contextmanager
def two_stores(broker: BrokerWithStores, folder: Path, num_groups: int) -> Iterator[list[int]]:
    """Both stores with the rollouts of the first groups; yields the bytes that each sent."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers: list[PayloadServer] = []
    tasks: list[asyncio.Task[None]] = []
    fetched = [0, 0]

    class CountingBacking(MemoryBacking):
        """Counts what is asked for."""

        def __init__(self, place: int) -> None:
            super().__init__()
            self.place = place

        def payload(self, rollout_id: RolloutId) -> tuple[RolloutHeader, list[memoryview]]:
            found = super().payload(rollout_id)
            fetched[self.place] += 1
            return found[0], [memoryview(frame) for frame in found[1]]

    async def serve() -> None:
        identity = Registered(run_id="run", broker_nonce="n", heartbeat_s=1.0, lease_s=5.0)
        for place, name in enumerate(NAMES):
            backing = CountingBacking(place)
            for group_id in range(num_groups):
                for index in range(place, GROUP_SIZE, 2):
                    rollout_id = RolloutId(group_id=group_id, index=index, attempt=1)
                    arrays = broker.sample(group_id, index)
                    backing.add(broker._header(rollout_id, arrays), arrays.frames())
            socket = BrokerSocket.bind(f"ipc://{folder}/{name}.sock")
            servers.append(PayloadServer(socket, PayloadService(backing), identity, Metrics()))
            broker.addresses[name] = servers[-1].endpoint
            tasks.append(loop.create_task(servers[-1].serve()))

    async def end() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in servers:
            server.close()

    asyncio.run_coroutine_threadsafe(serve(), loop).result(10.0)
    try:
        yield fetched
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10.0)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def first_chunk(tmp_path: Path, broker: FakeBroker, *, with_stores: bool) -> Chunk:
    config = small_config(tmp_path)
    if with_stores:
        config = dataclasses.replace(config, stores=StoresConfig(payloads="store", patience_s=5.0))
    with small_run(config, broker) as run:
        chunk = run.source.next_chunk(Lineage(), 0, held=())
    assert isinstance(chunk, Chunk)
    return chunk


def test_a_rank_reads_the_same_documents_from_two_stores_as_from_the_broker(
    tmp_path: Path,
) -> None:
    sample = random_rollout(VOCAB_SIZE)
    expected = first_chunk(
        tmp_path, FakeBroker(sample, GROUP_SIZE, chunk_sizes=(2,)), with_stores=False
    )
    broker = BrokerWithStores(sample, GROUP_SIZE, chunk_sizes=(2,))
    with two_stores(broker, tmp_path, num_groups=2) as fetched:
        chunk = first_chunk(tmp_path, broker, with_stores=True)
    assert "FetchRollouts" not in broker.log
    assert fetched == [GROUP_SIZE, GROUP_SIZE]
    assert chunk.layout == expected.layout
    assert list(chunk.documents) == list(expected.documents)
    for rollout_id, document in chunk.documents.items():
        other = expected.documents[rollout_id]
        assert np.array_equal(document.completion_token_ids, other.completion_token_ids)
        assert np.array_equal(document.behavior_logprobs, other.behavior_logprobs)
        assert (document.advantage, document.weight) == (other.advantage, other.weight)


def test_a_group_with_lost_arrays_is_left_out_reported_and_not_evicted(tmp_path: Path) -> None:
    broker = BrokerWithStores(random_rollout(VOCAB_SIZE), GROUP_SIZE, chunk_sizes=(2,))
    with two_stores(broker, tmp_path, num_groups=1):
        chunk = first_chunk(tmp_path, broker, with_stores=True)
    assert chunk.layout.group_ids == (0,)
    assert [group.group_id for group in chunk.groups] == [0]
    assert {rollout_id.group_id for rollout_id in chunk.documents} <= {0, 1}
    assert {rollout_id.group_id for rollout_id in broker.lost} == {1}
    assert len(broker.lost) == GROUP_SIZE
    assert broker.handed_over == [0]
    assert broker.evicted == {}
