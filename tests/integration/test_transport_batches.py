"""What leaves a channel: small requests together, none later than it could have alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from common.batching import MAX_BATCHED_BYTES, decode_requests
from common.codec import Decoded, encode
from common.errors import RefusedError
from common.messages import (
    MAX_BATCH_REQUESTS,
    Ack,
    AnyMessage,
    CommitCheckpoint,
    DescribeGroups,
    EvictGroups,
    Refused,
    Register,
    Registered,
    Reply,
    SubmitRollout,
)
from common.transport import Channel
from common.types import EvictReason, Role
from tests.builders import rollout_arrays, rollout_header


class ListeningBroker:
    """Keeps what came in which message; registers and acknowledges unless told to be silent."""

    def __init__(self, endpoint: str, *, silent: bool = False) -> None:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(endpoint)
        self._silent = silent
        self.messages: list[list[AnyMessage]] = []
        self._task = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        while True:
            peer, *parts = await self._socket.recv_multipart()
            requests = [item for _, item in decode_requests(parts) if isinstance(item, Decoded)]
            self.messages.append([request.message for request in requests])
            for request in requests:
                if isinstance(request.message, Register) or not self._silent:
                    reply = encode(_reply(request.message), request.request_id)
                    await self._socket.send_multipart([peer, *reply])

    @property
    def sizes(self) -> list[int]:
        """Requests in each message after the registration."""
        return [len(message) for message in self.messages[1:]]

    @property
    def steps(self) -> list[int]:
        """Which checkpoints were committed, in order; -1 for anything else."""
        requests = [request for message in self.messages[1:] for request in message]
        return [getattr(request, "policy_step", -1) for request in requests]

    async def die(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._context.destroy(linger=0)


def _reply(message: AnyMessage) -> Reply:
    if isinstance(message, Register):
        return Registered(
            run_id="r", broker_nonce="n", heartbeat_s=60.0, lease_s=60.0, credit_bytes=1 << 20
        )
    if isinstance(message, EvictGroups):
        return Refused(code="unknown", reason="no such group")
    return Ack()


async def _connect(endpoint: str) -> Channel:
    return await Channel.connect(role=Role.LEARNER, name="l", endpoint=lambda: endpoint)


def run(
    scenario: Callable[[ListeningBroker, Channel], Awaitable[None]],
    folder: Path,
    *,
    silent: bool = False,
) -> None:
    async def whole() -> None:
        endpoint = f"ipc://{folder}/b.sock"
        broker = ListeningBroker(endpoint, silent=silent)
        channel = await _connect(endpoint)
        try:
            async with asyncio.timeout(20.0):
                await scenario(broker, channel)
        finally:
            await channel.close()
            await broker.die()

    asyncio.run(whole())


def _commits(channel: Channel, number: int) -> list[asyncio.Task[Decoded]]:
    return [
        asyncio.create_task(channel.request(CommitCheckpoint(policy_step=step)))
        for step in range(number)
    ]


def test_the_first_of_many_requests_leaves_at_once_and_the_rest_in_full_batches(
    tmp_path: Path,
) -> None:
    async def scenario(broker: ListeningBroker, channel: Channel) -> None:
        answers = await asyncio.gather(*_commits(channel, 2 * MAX_BATCH_REQUESTS + 4))
        assert broker.sizes == [1, MAX_BATCH_REQUESTS, MAX_BATCH_REQUESTS, 3]
        assert broker.steps == list(range(2 * MAX_BATCH_REQUESTS + 4))
        assert {answer.message for answer in answers} == {Ack()}

    run(scenario, tmp_path)


def test_requests_that_follow_each_other_are_messages_of_their_own(tmp_path: Path) -> None:
    async def scenario(broker: ListeningBroker, channel: Channel) -> None:
        for step in range(5):
            await channel.request(CommitCheckpoint(policy_step=step))
        assert broker.sizes == [1] * 5

    run(scenario, tmp_path)


def test_arrays_and_large_headers_travel_alone_and_nothing_overtakes_them(tmp_path: Path) -> None:
    async def scenario(broker: ListeningBroker, channel: Channel) -> None:
        header = rollout_header(num_prompt=3, num_completion=5)
        frames = rollout_arrays(num_prompt=3, num_completion=5, seed=1).frames()
        large = DescribeGroups(group_ids=tuple(range(1000, 1000 + MAX_BATCHED_BYTES)))
        await asyncio.gather(
            *_commits(channel, 3),
            asyncio.create_task(channel.request(SubmitRollout(rollout=header), list(frames))),
            *_commits(channel, 2),
            asyncio.create_task(channel.request(large)),
            *_commits(channel, 2),
        )
        assert broker.steps == [0, 1, 2, -1, 0, 1, -1, 0, 1]
        assert broker.sizes == [1, 2, 1, 2, 1, 2]

    run(scenario, tmp_path)


def test_a_refusal_reaches_the_one_request_of_a_batch_that_it_is_for(tmp_path: Path) -> None:
    async def scenario(broker: ListeningBroker, channel: Channel) -> None:
        commits = _commits(channel, 3)
        evict = EvictGroups(group_ids=(1,), reason=EvictReason.RUN_END)
        with pytest.raises(RefusedError):
            await channel.request(evict)
        answers = await asyncio.gather(*commits)
        assert broker.sizes == [1, 3]
        assert [answer.message for answer in answers] == [Ack()] * 3

    run(scenario, tmp_path)


def test_a_request_that_was_given_up_while_it_waited_is_not_sent(tmp_path: Path) -> None:
    async def scenario(broker: ListeningBroker, channel: Channel) -> None:
        first, given_up, last = _commits(channel, 3)
        await asyncio.sleep(0)  # all three have been asked for, and only the first has left
        given_up.cancel()
        await asyncio.gather(first, last)
        assert broker.steps == [0, 2]
        with pytest.raises(asyncio.CancelledError):
            await given_up

    run(scenario, tmp_path)


def test_what_an_earlier_broker_left_unanswered_reaches_the_next_one_in_batches(
    tmp_path: Path,
) -> None:
    async def scenario(broker: ListeningBroker, channel: Channel) -> None:
        waiting = _commits(channel, 40)
        while len(broker.steps) < 40:
            await asyncio.sleep(0)
        await broker.die()
        successor = ListeningBroker(f"ipc://{tmp_path}/b.sock")
        await asyncio.gather(*waiting)
        assert successor.sizes == [MAX_BATCH_REQUESTS, 40 - MAX_BATCH_REQUESTS]
        assert successor.steps == list(range(40))
        await successor.die()

    run(scenario, tmp_path, silent=True)
