"""Damaged messages against a broker process, over its real socket, beside honest clients.

Strangers never register: an honest actor, verifier and learner work beside them, and the learner
compares the arrays that it gets with those that the actor sent. Insiders are registered, one of
each role, and have the broker to themselves: what they do whole is done, but no group of theirs may
come to be trained.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import zmq

from common.batching import decode_requests
from common.codec import decode
from common.messages import Acks, GetStatus, GroupCounts, Groups, Refused, Register, Status
from common.transport import Channel
from common.types import Role
from tests.broker_process import BrokerProcess, LearnerClient, run_actor, run_verifier
from tests.fuzz.mutations import Parts, whole_message

MAX_GROWTH_BYTES = 5 << 20
_PARTS = 10
_ROUND = 200
"""Messages between two looks at the answers."""
_ROUNDS_A_STEP = 100
_NUM_STRANGERS = 8
_STRANGER_MESSAGES = 2000
"""After so many a stranger leaves, and another comes."""
_REGISTER_EVERY = 500
_MAX_UNANSWERED = 1000
_ANSWER_S = 0.5
"""Silence after which nothing is taken to be under way any more."""
_LINGER_MS = 0


@dataclass
class FuzzedProcess:
    """What became of the damaged messages, and of the process."""

    num_messages: int = 0
    num_requests: int = 0
    """Requests in them, each to be answered; what is no message counts as one."""
    answers: Counter[str] = field(default_factory=Counter)
    num_delivered: int = 0
    """Groups that a peer which throws was given to train."""
    honest_steps: int = 0
    groups: GroupCounts = field(default_factory=GroupCounts)
    rss_growth_bytes: int = 0
    """Between the lowest readings of both halves: requests that are held come and go."""
    rss_mib: list[float] = field(default_factory=list)
    """Resident memory before the first message and after each tenth of them."""
    wall_s: float = 0.0

    def violations(self) -> list[str]:
        """What was promised and did not hold."""
        checks = {
            f"resident memory grew by {self.rss_growth_bytes} bytes": (
                self.rss_growth_bytes < MAX_GROWTH_BYTES
            ),
            f"{self.groups} is out of balance": not self.groups.imbalance,
            f"{self.num_delivered} groups were delivered": not self.num_delivered,
        }
        return [text for text, holds in checks.items() if not holds]


class Peer:
    """One connection that throws what it is given and counts what it is answered."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.connect(endpoint)
        self.num_thrown = 0

    def throw(self, parts: Parts) -> bool:
        """Send; False while the broker takes no more."""
        try:
            self._socket.send_multipart(parts, flags=zmq.NOBLOCK)
        except zmq.Again:
            return False
        self.num_thrown += 1
        return True

    def hear(self, fuzzed: FuzzedProcess) -> int:
        """Count the answers that are there; returns how many."""
        num_heard = 0
        while True:
            try:
                parts = self._socket.recv_multipart(flags=zmq.NOBLOCK)
            except zmq.Again:
                return num_heard
            num_heard += _count(fuzzed, parts)

    def leave(self) -> None:
        """Close the connection."""
        self._socket.close()


def _count(fuzzed: FuzzedProcess, parts: Parts) -> int:
    message = decode(parts).message
    if isinstance(message, Acks):
        fuzzed.answers["Ack"] += len(message.acks)
        return len(message.acks)
    if isinstance(message, Groups):
        fuzzed.num_delivered += len(message.groups)
    code = f" {message.code}" if isinstance(message, Refused) else ""
    fuzzed.answers[type(message).__name__ + code] += 1
    return 1


class Crowd(ABC):
    """The peers that throw, taking turns."""

    def __init__(self, endpoint: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._endpoint = endpoint
        self.peers: deque[Peer] = deque()

    @abstractmethod
    def thrower(self, number: int) -> Peer:
        """Who throws message ``number``."""

    def join(self) -> Peer:
        """Another peer connects."""
        self.peers.append(Peer(self._context, self._endpoint))
        return self.peers[-1]

    def close(self) -> None:
        """Everybody leaves."""
        self._context.destroy(linger=_LINGER_MS)


class Strangers(Crowd):
    """They come, throw for a while and leave."""

    def thrower(self, number: int) -> Peer:
        """See :meth:`Crowd.thrower`."""
        if len(self.peers) < _NUM_STRANGERS:
            return self.join()
        self.peers.rotate()
        if self.peers[0].num_thrown >= _STRANGER_MESSAGES:
            self.peers.popleft().leave()
            return self.join()
        return self.peers[0]


class Insiders(Crowd):
    """One of each role; each registers anew from time to time."""

    def thrower(self, number: int) -> Peer:
        """See :meth:`Crowd.thrower`."""
        roles = tuple(Role)
        turn, place = divmod(number, len(roles))
        while len(self.peers) < len(roles):
            self.join()
        peer = self.peers[place]
        if turn % _REGISTER_EVERY == 0:
            name, nonce = f"insider-{place}", f"n{number}"
            register = Register(role=roles[place], name=name, nonce=nonce, host="h", pid=1)
            peer.throw(whole_message(register))
        return peer


class ProcessFuzzer:
    """Throws at one broker process for as long as there are messages."""

    def __init__(self, broker: BrokerProcess, crowd: Crowd, learner: LearnerClient | None) -> None:
        self.fuzzed = FuzzedProcess()
        self._broker = broker
        self._crowd = crowd
        self._learner = learner
        self._num_heard = 0

    async def throw_all(
        self, messages: Iterator[Parts], num_messages: int, rest_s: float
    ) -> FuzzedProcess:
        """In ten parts; what the first five of them take in memory is warming up.

        ``rest_s`` lets the waits that were asked for run out before memory is compared.
        """
        began_s = time.perf_counter()
        resident = [self._rss_bytes()]
        bounds = [num_messages * tenth // _PARTS for tenth in range(_PARTS + 1)]
        for first, end in itertools.pairwise(bounds):
            await self._throw(messages, range(first, end))
            if len(resident) % (_PARTS // 2) == 0:
                await asyncio.sleep(rest_s)
            resident.append(self._rss_bytes())
        fuzzed = self.fuzzed
        fuzzed.num_messages = num_messages
        middle = 1 + _PARTS // 2
        fuzzed.rss_growth_bytes = min(resident[middle:]) - min(resident[1:middle])
        fuzzed.rss_mib = [round(size / 2**20, 1) for size in resident]
        fuzzed.wall_s = time.perf_counter() - began_s
        return fuzzed

    async def _throw(self, messages: Iterator[Parts], numbers: range) -> None:
        for number in numbers:
            parts = next(messages)
            self.fuzzed.num_requests += len(decode_requests(parts))
            while not self._crowd.thrower(number).throw(parts):
                await self._hear()
            if number % _ROUND == 0:
                await self._hear_most()
            if self._learner is not None and number % (_ROUND * _ROUNDS_A_STEP) == 0:
                await self._learner.step()
                self.fuzzed.honest_steps += 1
        await self._hear_rest()

    async def _hear(self) -> int:
        """Count what has come, and let the honest clients work."""
        num_heard = sum(peer.hear(self.fuzzed) for peer in self._crowd.peers)
        self._num_heard += num_heard
        await asyncio.sleep(0 if num_heard else 0.001)
        return num_heard

    async def _hear_most(self) -> None:
        """Wait until few are unanswered; some of the insiders' requests are held for long."""
        deadline_s = time.monotonic() + _ANSWER_S
        while self._num_unanswered > _MAX_UNANSWERED and time.monotonic() < deadline_s:
            if await self._hear():
                deadline_s = time.monotonic() + _ANSWER_S
        if self._num_unanswered > _MAX_UNANSWERED:
            self._num_heard = self.fuzzed.num_requests  # these will not be answered any more

    async def _hear_rest(self) -> None:
        deadline_s = time.monotonic() + _ANSWER_S
        while time.monotonic() < deadline_s:
            if await self._hear():
                deadline_s = time.monotonic() + _ANSWER_S

    @property
    def _num_unanswered(self) -> int:
        return self.fuzzed.num_requests - self._num_heard

    def _rss_bytes(self) -> int:
        assert self._broker.process is not None
        assert self._broker.process.poll() is None, "the broker has ended"
        return int(psutil.Process(self._broker.process.pid).memory_info().rss)


async def fuzz_process(
    folder: Path,
    messages: Iterator[Parts],
    num_messages: int,
    *,
    as_insiders: bool,
    rest_s: float = 0.0,
) -> FuzzedProcess:
    """Throw ``num_messages`` at a broker process of its own in ``folder``."""
    broker = _patient_broker(folder)
    broker.start()
    try:
        supervisor = await broker.connect(Role.SUPERVISOR, "honest")
        endpoint = broker.paths.endpoint_file.read_text()
        crowd = Insiders(endpoint) if as_insiders else Strangers(endpoint)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(crowd.close)
            stack.push_async_callback(supervisor.close)
            honest = None if as_insiders else await stack.enter_async_context(_honest(broker))
            fuzzer = ProcessFuzzer(broker, crowd, honest)
            fuzzed = await fuzzer.throw_all(messages, num_messages, rest_s)
            fuzzed.groups = (await _status(supervisor)).groups
            return fuzzed
    finally:
        broker.stop()


def _patient_broker(folder: Path) -> BrokerProcess:
    """A broker that does not end because nothing moves."""
    broker = BrokerProcess(folder, num_steps=10**6, dead_after_s=60.0, heartbeat_s=2.0)
    text = broker.run_file.read_text()
    broker.run_file.write_text(text.replace("[broker]\n", "[broker]\nno_progress_s = 86400\n"))
    return broker


@contextlib.asynccontextmanager
async def _honest(broker: BrokerProcess) -> AsyncIterator[LearnerClient]:
    """A learner that can take steps, because an actor and a verifier work for it."""
    learner = await LearnerClient.connect(broker)
    jobs = [
        asyncio.create_task(run_actor(broker, "actor")),
        asyncio.create_task(run_verifier(broker, "verifier")),
    ]
    try:
        yield learner
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        await learner.channel.close()


async def _status(supervisor: Channel) -> Status:
    reply = (await supervisor.request(GetStatus(), timeout_s=30.0)).message
    assert isinstance(reply, Status)
    return reply
