"""What the processes of benchmark B1 share: sockets, rollouts, orders and a producer's credit."""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import zmq

from common.codec import Buffer, Decoded, decode, encode
from common.errors import FatalError
from common.messages import (
    Ack,
    Acks,
    AnyMessage,
    Credit,
    FetchRollouts,
    PromptLeases,
    Refused,
    Register,
    Registered,
    Request,
    ReserveBytes,
)
from common.sockets import set_common_options
from common.types import (
    FinishReason,
    Role,
    RolloutHeader,
    RolloutId,
    VersionSpan,
    WeightVersion,
)

ROLLOUT_BYTES = 256 << 10
PROMPT_TOKENS = 512
WINDOW = 64
"""Rollouts of one producer that have not arrived."""
PUT_ROLLOUTS = 8
IDS_PER_PRODUCER = 1_000_000
HIGH_WATER_MARK = 32
"""Messages that a queue of the baseline holds."""
PATIENCE_MS = 60_000
VERSION = WeightVersion(incarnation=0, policy_step=0)
CONTEXT: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
_RESERVED_AHEAD = 8 << 20
_COMPLETION_TOKENS = (ROLLOUT_BYTES // 4 - PROMPT_TOKENS) // 2

Orders = dict[str, Any]


def header_of(group_id: int, attempt: int = 1) -> RolloutHeader:
    """A rollout of :data:`ROLLOUT_BYTES`."""
    return RolloutHeader(
        rollout_id=RolloutId(group_id=group_id, index=0, attempt=attempt),
        num_prompt_tokens=PROMPT_TOKENS,
        num_completion_tokens=_COMPLETION_TOKENS,
        finish_reason=FinishReason.STOP,
        temperature=1.0,
        version_spans=(VersionSpan(start=0, version=VERSION),),
        actor="load",
    )


def arrays() -> list[bytearray]:
    """The three frames of a rollout."""
    return [bytearray(size) for size in header_of(0).frame_bytes()]


# --- orders ---------------------------------------------------------------------------------------


class Stopwatch:
    """Processor time of this process since its orders came, all threads together."""

    def __init__(self) -> None:
        self._start_s = 0.0

    def start(self) -> None:
        """Count from here on."""
        self._start_s = time.process_time()

    def microseconds(self) -> float:
        """Of processor time so far."""
        return 1e6 * (time.process_time() - self._start_s)


STOPWATCH = Stopwatch()


def orders() -> Orders:
    """Say that this process is ready and wait for its orders.

    What was made so far is left out of garbage collections: imports differ between the sides.
    """
    gc.collect()
    gc.freeze()
    print(json.dumps({}), flush=True)
    given: Orders = json.loads(sys.stdin.readline())
    STOPWATCH.start()
    return given


# --- sockets --------------------------------------------------------------------------------------


def socket_of(kind: int, *, connect: Sequence[str] = (), bind: str = "") -> zmq.Socket[bytes]:
    """A socket with the options of every side of the comparison."""
    socket = CONTEXT.socket(kind)
    set_common_options(socket)
    socket.setsockopt(zmq.LINGER, PATIENCE_MS)
    socket.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
    socket.setsockopt(zmq.SNDTIMEO, PATIENCE_MS)
    if kind in (zmq.PUSH, zmq.PULL):
        socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    for endpoint in connect:
        socket.connect(endpoint)
    if bind:
        socket.bind(bind)
    return socket


def connected(endpoint: str) -> zmq.Socket[bytes]:
    """A client's connection to a server of ours."""
    return socket_of(zmq.DEALER, connect=(endpoint,))


def poll(*sockets: zmq.Socket[bytes]) -> Iterator[zmq.Socket[bytes]]:
    """Those that have something to receive; waits for one."""
    poller = zmq.Poller()
    for socket in sockets:
        poller.register(socket, zmq.POLLIN)
    ready = poller.poll(PATIENCE_MS)
    if not ready:
        raise FatalError("nothing came for a minute")
    yield from (socket for socket, _ in ready)


def ask(socket: zmq.Socket[bytes], group_ids: Sequence[int]) -> None:
    """Send for the rollouts of these groups."""
    wanted = tuple(header_of(group_id).rollout_id for group_id in group_ids)
    socket.send_multipart(encode(FetchRollouts(rollout_ids=wanted), 1))


def receive(socket: zmq.Socket[bytes]) -> Decoded:
    """The next message; raises :class:`FatalError` for a refusal."""
    parts: list[Buffer] = [frame.buffer for frame in socket.recv_multipart(copy=False)]
    decoded = decode(parts)
    if isinstance(decoded.message, Refused):
        raise FatalError(f"{decoded.message.code}: {decoded.message.reason}")
    return decoded


class CreditedClient:
    """A producer's connection, with the byte credit that it was granted."""

    def __init__(self, endpoint: str, role: Role, name: str = "producer") -> None:
        self.socket = connected(endpoint)
        self._request_ids = itertools.count(1)
        register = Register(role=role, name=name, nonce=name, host="localhost", pid=os.getpid())
        self.send(register)
        registered = receive(self.socket).message
        if not isinstance(registered, Registered):
            raise FatalError(f"the server answered Register with {registered}")
        self._balance = registered.credit_bytes
        self._is_asking = False

    def has_credit(self, num_bytes: int) -> bool:
        """Whether so much may be sent; if not, it is asked for."""
        if self._balance < num_bytes and not self._is_asking:
            self._is_asking = True
            least = num_bytes - self._balance
            self.send(ReserveBytes(least=least, most=least + _RESERVED_AHEAD, wait_s=10.0))
        return self._balance >= num_bytes

    def send(self, message: Request, frames: Sequence[Buffer] = ()) -> None:
        """Send without waiting for the reply; arrays use up credit."""
        if frames:
            self._balance -= sum(map(len, frames))
        self.socket.send_multipart(encode(message, next(self._request_ids), frames), copy=False)

    def receive(self) -> int:
        """Wait for one message; returns how many requests with arrays it acknowledges."""
        return self._take(receive(self.socket).message)

    def receive_leases(self) -> PromptLeases:
        """Wait for prompts."""
        while True:
            message = receive(self.socket).message
            if isinstance(message, PromptLeases):
                return message
            self._take(message)

    def _take(self, message: AnyMessage) -> int:
        if isinstance(message, Credit):
            self._is_asking = False
            self._balance += message.num_bytes
            return 0
        acks = [ack for _, ack in message.acks] if isinstance(message, Acks) else [message]
        for ack in acks:
            if not isinstance(ack, Ack):
                raise FatalError(f"the server answered {ack}")
            self._balance += ack.credit_bytes
        return len(acks)
