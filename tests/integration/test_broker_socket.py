"""The broker's socket: no wake-up is lost, no message is mixed with the next, nothing blocks."""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.utils.garbage import gc as garbage_collector

from common.batching import encode_batch
from common.broker_socket import BrokerSocket, Incoming
from common.codec import Decoded, encode, pack
from common.errors import DecodeError
from common.messages import (
    Ack,
    CommitCheckpoint,
    GetStatus,
    PublishWeights,
    Rollouts,
    SubmitRollout,
)
from tests.builders import rollout_arrays, rollout_header, version


class Wire:
    """A broker socket and one raw client of it."""

    def __init__(self, folder: Path) -> None:
        self.broker = BrokerSocket.bind(f"ipc://{folder}/b.sock")
        self.context = zmq.Context()
        self.client = self.connect()

    def connect(self) -> zmq.Socket[bytes]:
        client = self.context.socket(zmq.DEALER)
        client.setsockopt(zmq.LINGER, 0)
        client.connect(self.broker.endpoint)
        return client

    def say(self, request_id: int) -> None:
        self.client.send_multipart(encode(GetStatus(), request_id))

    def hear(self) -> list[bytes]:
        assert self.client.poll(5000), "the client got nothing"
        return self.client.recv_multipart()

    def until_arrived(self) -> None:
        """Return once libzmq knows of a message to receive."""
        deadline = time.monotonic() + 5.0
        while not int(self.broker._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            assert time.monotonic() < deadline

    def is_signalled(self) -> bool:
        """Whether the descriptor of the broker's socket is readable."""
        descriptor = int(self.broker._socket.getsockopt(zmq.FD))
        return bool(select.select([descriptor], [], [], 0.0)[0])

    def close(self) -> None:
        self.context.destroy(linger=0)
        self.broker.close()


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(tmp_path)
    yield wire
    wire.close()


async def _take(broker: BrokerSocket, number: int, limit: int = 64) -> list[int]:
    """Request ids of the next ``number`` messages, at most ``limit`` a turn."""
    taken: list[int] = []
    async with asyncio.timeout(5.0):
        while len(taken) < number:
            await broker.wait_readable()  # hangs if a wake-up is lost
            taken.extend(incoming.request_id for incoming in broker.receive_now(limit))
    return taken


def test_a_message_whose_signal_another_call_has_consumed_still_wakes_the_broker(
    wire: Wire,
) -> None:
    async def scenario() -> None:
        wire.say(1)
        assert await wire.broker.wait_readable(5.0)
        assert len(wire.broker.receive_now(64)) == 1
        wire.say(2)
        wire.until_arrived()  # asking takes the signal, as does a send now and then
        assert not wire.is_signalled()
        assert await _take(wire.broker, 1) == [2]

    asyncio.run(scenario())


def test_a_batch_arrives_as_the_requests_in_it_and_a_turn_takes_it_whole(wire: Wire) -> None:
    async def scenario() -> None:
        batch = [(request_id, pack(GetStatus())) for request_id in (1, 2, 3)]
        wire.client.send_multipart(encode_batch([*batch, (4, b"\xc0")]))
        wire.say(5)
        assert await wire.broker.wait_readable(5.0)
        wire.until_arrived()
        taken = wire.broker.receive_now(2)
        assert [incoming.request_id for incoming in taken] == [1, 2, 3, 4]
        assert len({incoming.peer for incoming in taken}) == 1
        *whole, bad = (incoming.decoded for incoming in taken)
        assert [one.message for one in whole if isinstance(one, Decoded)] == [GetStatus()] * 3
        assert isinstance(bad, DecodeError)
        assert await _take(wire.broker, 1) == [5]

    asyncio.run(scenario())


def test_arrays_that_came_in_leave_in_the_memory_they_came_in(wire: Wire) -> None:
    header = rollout_header(num_prompt=30_000, num_completion=30_000)
    arrays = rollout_arrays(num_prompt=30_000, num_completion=30_000, seed=1)
    sent = [bytes(frame) for frame in arrays.frames()]

    async def scenario() -> None:
        wire.client.send_multipart(encode(SubmitRollout(rollout=header), 5, sent))
        (incoming,) = await wire.broker.receive(1)
        assert isinstance(incoming.decoded, Decoded)
        frames = incoming.decoded.frames
        before = len(garbage_collector.refs)
        for number in range(8):
            wire.broker.send(incoming.peer, number, Rollouts(rollouts=(header,)), frames)
        assert len(garbage_collector.refs) - before <= 8, "only the last frame of each is watched"
        for _ in range(8):
            _, _, *back = wire.hear()
            assert back == sent

    asyncio.run(scenario())


def test_messages_left_by_a_full_turn_wake_the_broker(wire: Wire) -> None:
    async def scenario() -> None:
        for request_id in range(1, 8):
            wire.say(request_id)
        assert await _take(wire.broker, 7, limit=2) == list(range(1, 8))
        assert not await wire.broker.wait_readable(0.01)

    asyncio.run(scenario())


def test_ten_thousand_exchanges_one_by_one_lose_no_wake_up(wire: Wire) -> None:
    async def serve() -> None:
        for _ in range(10_000):
            async with asyncio.timeout(5.0):
                await wire.broker.wait_readable()
            for incoming in wire.broker.receive_now(64):
                wire.broker.send(incoming.peer, incoming.request_id, Ack())

    def ask() -> None:
        for request_id in range(1, 10_001):
            wire.say(request_id)
            wire.hear()

    async def scenario() -> None:
        asking = asyncio.get_running_loop().run_in_executor(None, ask)
        await serve()
        await asking

    asyncio.run(scenario())


@pytest.mark.timeout(20)
def test_waiting_ends_when_woken_and_when_the_time_is_up(wire: Wire) -> None:
    async def scenario() -> None:
        assert not await wire.broker.wait_readable(0.0)
        wire.broker.wake()
        assert not await wire.broker.wait_readable(60.0)
        asyncio.get_running_loop().call_later(0.01, wire.broker.wake)
        assert not await wire.broker.wait_readable(60.0)

    asyncio.run(scenario())


def test_a_message_without_a_header_does_not_eat_into_the_next(wire: Wire) -> None:
    wire.client.send_multipart([b"alone"])
    wire.say(2)

    async def scenario() -> None:
        taken: list[Incoming] = []
        while len(taken) < 2:
            assert await wire.broker.wait_readable(5.0)
            taken += wire.broker.receive_now(64)
        assert isinstance(taken[0].decoded, DecodeError)
        assert isinstance(taken[1].decoded, Decoded)
        assert taken[1].request_id == 2

    asyncio.run(scenario())


def test_a_peer_that_is_gone_is_counted_and_harms_nobody(wire: Wire) -> None:
    wire.broker.send(b"nobody", 1, Ack())
    assert wire.broker.num_unroutable == 1


def test_a_peer_that_reads_nothing_is_counted_once_its_queue_is_full(wire: Wire) -> None:
    async def scenario() -> bytes:
        wire.say(1)
        assert await wire.broker.wait_readable(5.0)
        return wire.broker.receive_now(1)[0].peer

    peer = asyncio.run(scenario())
    manifest = bytes(1 << 16)
    publish = PublishWeights(version=version(0), manifest_digest="d")
    for _ in range(40_000):
        wire.broker.send(peer, 1, publish, [manifest])  # type: ignore[arg-type]  # any message does
        if wire.broker.num_unroutable:
            break
    assert wire.broker.num_unroutable == 1


def test_large_arrays_are_views_and_small_ones_are_copies(wire: Wire) -> None:
    header = rollout_header(num_prompt=3, num_completion=5000)
    arrays = rollout_arrays(num_prompt=3, num_completion=5000, seed=1)
    wire.client.send_multipart(encode(SubmitRollout(rollout=header), 5, arrays.frames()))

    async def scenario() -> Decoded:
        assert await wire.broker.wait_readable(5.0)
        (incoming,) = wire.broker.receive_now(64)
        assert isinstance(incoming.decoded, Decoded)
        return incoming.decoded

    frames = asyncio.run(scenario()).frames
    assert [isinstance(frame.obj, bytes) for frame in frames] == [True, False, False]
    assert [bytes(frame) for frame in frames] == [bytes(f.cast("B")) for f in arrays.frames()]


def test_a_security_helper_is_asked_before_the_bind_and_closed_with_the_socket(
    tmp_path: Path,
) -> None:
    calls: list[str] = []

    class Guard:
        def close(self) -> None:
            calls.append("closed")

    def secure(context: zmq.Context[Any], socket: zmq.Socket[Any]) -> Guard:
        calls.append(f"last endpoint {socket.getsockopt(zmq.LAST_ENDPOINT)!r}")
        return Guard()

    async def scenario() -> str:
        broker = BrokerSocket.bind(f"ipc://{tmp_path}/b.sock", secure=secure)
        context = zmq.Context()
        client = context.socket(zmq.DEALER)
        client.connect(broker.endpoint)
        client.send_multipart(encode(CommitCheckpoint(policy_step=1), 3))
        assert await broker.wait_readable(5.0)
        (incoming,) = broker.receive_now(1)
        client.close(linger=0)
        context.term()
        broker.close()
        return incoming.user_id

    assert asyncio.run(scenario()) == ""
    assert calls == ["last endpoint b''", "closed"]
