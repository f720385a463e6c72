"""The channel over real sockets: answers, refusals, and brokers that die and come back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
import zmq

from common.broker_socket import BrokerSocket
from common.errors import DecodeError, FatalError, RefusedError, RequestTimeoutError
from common.messages import (
    Ack,
    Acks,
    CommitCheckpoint,
    FetchRollouts,
    Heartbeat,
    LeaseRollouts,
    Refused,
    Register,
    Registered,
    Reply,
    Rollouts,
)
from common.sync_channel import SyncChannel
from common.transport import Channel
from common.types import Role, RolloutId
from tests.builders import rollout_arrays, rollout_header


class EchoBroker:
    """Registers everybody and acknowledges everything, as long as it is told to live."""

    def __init__(self, endpoint: str) -> None:
        self.socket = BrokerSocket.bind(endpoint)
        self.peers: set[bytes] = set()
        self.seen: list[object] = []
        self.held: list[tuple[bytes, int]] = []
        self.silent = False
        self.task = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        while True:
            for incoming in await self.socket.receive(64):
                if isinstance(incoming.decoded, DecodeError):
                    self.seen.append(incoming.decoded)
                    continue
                message = incoming.decoded.message
                self.seen.append(message)
                if isinstance(message, LeaseRollouts):
                    self.held.append((incoming.peer, incoming.request_id))
                if self.silent or isinstance(message, LeaseRollouts):
                    continue
                self.socket.send(
                    incoming.peer, incoming.request_id, self._reply(incoming.peer, message)
                )

    def _reply(self, peer: bytes, message: object) -> Reply:
        if isinstance(message, Register):
            self.peers.add(peer)
            return Registered(run_id="r", broker_nonce="n", heartbeat_s=0.4, lease_s=1.0)
        if peer not in self.peers:
            return Refused(code="unregistered", reason="who are you")
        if isinstance(message, FetchRollouts):
            return Refused(code="unknown", reason="no such rollout")
        return Ack()

    async def die(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.socket.close()


def run(scenario: Callable[[str], Coroutine[None, None, None]], folder: Path) -> None:
    asyncio.run(scenario(f"ipc://{folder}/b.sock"))


async def connect(endpoint: str, timeout_s: float = 10.0) -> Channel:
    return await Channel.connect(
        role=Role.ACTOR, name="a", endpoint=lambda: endpoint, timeout_s=timeout_s
    )


def test_a_request_is_answered_and_a_refusal_is_an_error(tmp_path: Path) -> None:
    async def scenario(endpoint: str) -> None:
        broker = EchoBroker(endpoint)
        channel = await connect(endpoint)
        assert channel.registered.run_id == "r"
        assert (await channel.request(Heartbeat())).message == Ack()
        wanted = FetchRollouts(rollout_ids=(RolloutId(group_id=1, index=0, attempt=1),))
        with pytest.raises(RefusedError) as caught:
            await channel.request(wanted)
        assert caught.value.code == "unknown"
        await channel.close()
        await broker.die()

    run(scenario, tmp_path)


def test_requests_survive_a_broker_that_dies_and_comes_back(tmp_path: Path) -> None:
    async def scenario(endpoint: str) -> None:
        broker = EchoBroker(endpoint)
        channel = await connect(endpoint)
        broker.silent = True
        waiting = [asyncio.create_task(channel.request(Heartbeat())) for _ in range(20)]
        while len(broker.seen) < 21:
            await asyncio.sleep(0)
        await broker.die()
        successor = EchoBroker(endpoint)
        answers = await asyncio.gather(*waiting)
        assert [answer.message for answer in answers] == [Ack()] * 20
        registrations = [one for one in successor.seen if isinstance(one, Register)]
        assert len(registrations) == 1, "one registration serves all requests that were refused"
        await channel.close()
        await successor.die()

    run(scenario, tmp_path)


def test_a_broker_that_falls_silent_is_left_within_three_heartbeats_and_met_again(
    tmp_path: Path,
) -> None:
    async def scenario(endpoint: str) -> None:
        broker = EchoBroker(endpoint)
        channel = await connect(endpoint)
        heartbeat_s = channel.registered.heartbeat_s
        broker.silent = True
        clock = asyncio.get_running_loop().time
        start_s = clock()
        waiting = asyncio.create_task(channel.request(CommitCheckpoint(policy_step=1)))
        while sum(isinstance(one, Register) for one in broker.seen) < 2:
            await asyncio.sleep(0.01)
        assert 2.0 * heartbeat_s < clock() - start_s < 3.0 * heartbeat_s + 0.5
        with pytest.raises(RequestTimeoutError, match="has been silent for"):
            await channel.request(Heartbeat(), timeout_s=1.5 * heartbeat_s)
        broker.silent = False
        assert (await waiting).message == Ack()
        assert len(broker.peers) == 2, "the first socket, and the one that met no silence"
        await channel.close()
        await broker.die()

    run(scenario, tmp_path)


def test_a_long_wait_for_work_is_no_silence(tmp_path: Path) -> None:
    async def scenario(endpoint: str) -> None:
        broker = EchoBroker(endpoint)
        channel = await connect(endpoint)
        waiting = asyncio.create_task(channel.request(LeaseRollouts(max_rollouts=1, wait_s=5.0)))
        while len(broker.held) < 1:
            await asyncio.sleep(0.01)
        await asyncio.sleep(3.5 * channel.registered.heartbeat_s)
        broker.socket.send(*broker.held[0], Ack())
        assert (await waiting).message == Ack()
        assert sum(isinstance(one, Register) for one in broker.seen) == 1
        await channel.close()
        await broker.die()

    run(scenario, tmp_path)


def test_acknowledgements_that_came_together_reach_whoever_waits_for_each(tmp_path: Path) -> None:
    async def scenario(endpoint: str) -> None:
        broker = EchoBroker(endpoint)
        channel = await connect(endpoint)
        asked = [
            asyncio.create_task(channel.request(LeaseRollouts(max_rollouts=n, wait_s=0.0)))
            for n in range(3)
        ]
        while len(broker.held) < 3:
            await asyncio.sleep(0)
        outcomes = ("accepted", "late", "duplicate")
        acks = zip((request_id for _, request_id in broker.held), outcomes, strict=True)
        together = Acks(acks=tuple((request_id, Ack(outcome=one)) for request_id, one in acks))
        broker.socket.send(broker.held[0][0], 0, together)
        assert [(await one).message for one in asked] == [Ack(outcome=one) for one in outcomes]
        await channel.close()
        await broker.die()

    run(scenario, tmp_path)


def test_a_channel_follows_a_broker_to_another_endpoint(tmp_path: Path) -> None:
    async def scenario(endpoint: str) -> None:
        where = [endpoint]
        broker = EchoBroker(endpoint)
        channel = await Channel.connect(role=Role.ACTOR, name="a", endpoint=lambda: where[0])
        await broker.die()
        where[0] = endpoint + "2"
        successor = EchoBroker(where[0])
        assert (await channel.request(Heartbeat())).message == Ack()
        await channel.close()
        await successor.die()

    run(scenario, tmp_path)


def test_an_absent_broker_is_a_timeout_that_names_it(tmp_path: Path) -> None:
    async def scenario(endpoint: str) -> None:
        with pytest.raises(RequestTimeoutError, match="b.sock did not answer Register"):
            await connect(endpoint, timeout_s=0.2)

    run(scenario, tmp_path)


def test_a_taken_endpoint_is_one_clear_error() -> None:
    async def scenario() -> None:
        first = BrokerSocket.bind("tcp://127.0.0.1:*")
        with pytest.raises(FatalError, match="cannot be bound"):
            BrokerSocket.bind(first.endpoint)
        first.close()

    asyncio.run(scenario())


def test_foreign_bytes_reach_the_broker_as_an_error_and_harm_nothing(tmp_path: Path) -> None:
    async def scenario(endpoint: str) -> None:
        broker = EchoBroker(endpoint)
        context = zmq.Context()
        stranger = context.socket(zmq.DEALER)
        stranger.connect(endpoint)
        stranger.send_multipart([b"GET /", b"junk"])
        while not broker.seen:
            await asyncio.sleep(0)
        assert isinstance(broker.seen[0], DecodeError)
        channel = await connect(endpoint)
        assert (await channel.request(Heartbeat())).message == Ack()
        await channel.close()
        stranger.close(linger=0)
        context.term()
        await broker.die()

    run(scenario, tmp_path)


def test_large_arrays_cross_unchanged(tmp_path: Path) -> None:
    async def scenario(endpoint: str) -> None:
        header = rollout_header(num_prompt=7, num_completion=100_000)
        arrays = rollout_arrays(num_prompt=7, num_completion=100_000, seed=1)
        socket = BrokerSocket.bind(endpoint)

        async def serve() -> None:
            for _ in range(2):
                (incoming,) = await socket.receive(1)
                if isinstance(incoming.decoded, DecodeError):
                    raise incoming.decoded
                if isinstance(incoming.decoded.message, Register):
                    reply: Reply = Registered(
                        run_id="r", broker_nonce="n", heartbeat_s=1.0, lease_s=1.0
                    )
                    socket.send(incoming.peer, incoming.request_id, reply)
                else:
                    socket.send(
                        incoming.peer,
                        incoming.request_id,
                        Rollouts(rollouts=(header,)),
                        arrays.frames(),
                    )

        serving = asyncio.create_task(serve())
        channel = await connect(endpoint)
        decoded = await channel.request(FetchRollouts(rollout_ids=(header.rollout_id,)))
        assert [bytes(frame) for frame in decoded.frames] == [
            bytes(frame.cast("B")) for frame in arrays.frames()
        ]
        await serving
        await channel.close()
        socket.close()

    run(scenario, tmp_path)


def test_synchronous_code_uses_the_same_channel(tmp_path: Path) -> None:
    async def scenario(endpoint: str) -> None:
        broker = EchoBroker(endpoint)

        def synchronous() -> object:
            channel = SyncChannel.connect(role=Role.LEARNER, name="l", endpoint=lambda: endpoint)
            try:
                return channel.request(Heartbeat()).message
            finally:
                channel.close()

        assert await asyncio.to_thread(synchronous) == Ack()
        await broker.die()

    run(scenario, tmp_path)
