"""The processes that move rollouts for benchmark B1.

``python -m deploy.bench.bulk KIND ARGUMENTS`` reads one JSON line with its orders on standard input
and answers with one line. Producers and consumers are plain loops over blocking sockets on both
sides of the comparison, so that what stands between them is what is measured. A consumer tells the
producer of each rollout that it has arrived, and a producer has at most ``WINDOW`` of them on the
way: that is the part of the ledger.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import zmq

from common.codec import Buffer, Decoded, decode, encode
from common.errors import FatalError
from common.lifecycle import die_with_parent
from common.messages import (
    Ack,
    Acks,
    AnyMessage,
    Credit,
    Ended,
    EvictGroups,
    FetchRollouts,
    GetStores,
    HeartbeatReply,
    LeasePrompts,
    LeaseRollouts,
    ListEnded,
    PromptLeases,
    PutRollouts,
    Refused,
    Register,
    Registered,
    Reply,
    Request,
    ReserveBytes,
    RolloutLeases,
    Rollouts,
    StoreAddress,
    Stores,
    SubmitRollout,
)
from common.sockets import set_common_options
from common.types import (
    EvictReason,
    FinishReason,
    Role,
    RolloutHeader,
    RolloutId,
    VersionSpan,
    WeightVersion,
)
from deploy.bench.broker import ROLLOUT_BYTES
from deploy.bench.raw_client import RawClient

PROMPT_TOKENS = 512
WINDOW = 64
"""Rollouts of one producer that have not arrived."""
PUT_ROLLOUTS = 8
FETCHES_IN_FLIGHT = 3
HIGH_WATER_MARK = 32
"""Messages that a queue of the baseline holds."""
IDLE_MS = 1000
_LEDGER_TICK_S = 0.02
_RESERVED_AHEAD = 8 << 20
PATIENCE_MS = 60_000
_COMPLETION_TOKENS = (ROLLOUT_BYTES // 4 - PROMPT_TOKENS) // 2
_VERSION = WeightVersion(incarnation=0, policy_step=0)
_IDS_PER_PRODUCER = 1_000_000
_CONTEXT: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

Orders = dict[str, Any]


def header_of(group_id: int, attempt: int = 1) -> RolloutHeader:
    """A rollout of :data:`ROLLOUT_BYTES`."""
    return RolloutHeader(
        rollout_id=RolloutId(group_id=group_id, index=0, attempt=attempt),
        num_prompt_tokens=PROMPT_TOKENS,
        num_completion_tokens=_COMPLETION_TOKENS,
        finish_reason=FinishReason.STOP,
        temperature=1.0,
        version_spans=(VersionSpan(start=0, version=_VERSION),),
        actor="load",
    )


def arrays() -> list[bytearray]:
    """The three frames of a rollout."""
    return [bytearray(size) for size in header_of(0).frame_bytes()]


def socket_of(kind: int, *, connect: Sequence[str] = (), bind: str = "") -> zmq.Socket[bytes]:
    """A socket with the options of every side of the comparison."""
    socket = _CONTEXT.socket(kind)
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


# --- the baseline ---------------------------------------------------------------------------------


def proxy(front: str, back: str) -> None:
    """Forward until killed, all of it in C."""
    frontend, backend = socket_of(zmq.PULL, bind=front), socket_of(zmq.PUSH, bind=back)
    for socket in (frontend, backend):
        socket.setsockopt(zmq.RCVTIMEO, -1)
        socket.setsockopt(zmq.SNDTIMEO, -1)
    _ready()
    zmq.proxy(frontend, backend)


def push(endpoint: str, bind: str = "") -> Orders:
    """Send ``number`` messages of the frames that a rollout has."""
    socket = socket_of(zmq.PUSH, connect=() if bind else (endpoint,), bind=endpoint if bind else "")
    parts = [bytes(part) for part in encode(PutRollouts(rollouts=(header_of(0),)), 1, arrays())]
    for _ in range(_ready()["number"]):
        socket.send_multipart(parts, copy=False)
    socket.close()
    _CONTEXT.term()
    return {}


def pull(*endpoints: str) -> Orders:
    """Receive until nothing comes any more."""
    socket = socket_of(zmq.PULL, connect=endpoints)
    _ready()
    number, end_s = 0, 0.0
    while socket.poll(IDLE_MS if number else PATIENCE_MS):
        socket.recv_multipart(copy=False)
        number, end_s = number + 1, time.monotonic()
    return {"number": number, "end_s": end_s}


# --- through a store ------------------------------------------------------------------------------


def put(endpoint: str, number_of_producer: str, notes: str, arrived: str) -> Orders:
    """Put ``number`` rollouts, tell a consumer of those that were acknowledged."""
    store, note = CreditedClient(endpoint, Role.ACTOR), socket_of(zmq.PUSH, connect=(notes,))
    done = socket_of(zmq.PULL, bind=arrived)
    frames = arrays()
    first = int(number_of_producer) * _IDS_PER_PRODUCER
    number = _ready()["number"]
    waiting: deque[list[int]] = deque()
    sent = acknowledged = under_way = 0
    while acknowledged < number:
        size = min(PUT_ROLLOUTS, number - sent)
        if size and under_way + size <= WINDOW and store.has_credit(size * ROLLOUT_BYTES):
            ids = list(range(first + sent, first + sent + size))
            message = PutRollouts(rollouts=tuple(header_of(item) for item in ids))
            store.send(message, frames * size)
            waiting.append(ids)
            sent, under_way = sent + size, under_way + size
            continue
        for ready, _ in _poll(store.socket, done):
            if ready is done:
                under_way -= int(done.recv())
                continue
            for _ in range(store.receive()):
                ids = waiting.popleft()
                acknowledged += len(ids)
                note.send_json(ids)
    note.send_json([])
    note.close()
    return {}


def fetch(endpoint: str, notes: str, ended: str, *arrived: str) -> Orders:
    """Fetch what producers tell of until each has said that it is done; its group then ends."""
    store, note = _connected(endpoint), socket_of(zmq.PULL, bind=notes)
    ledger_of_ended = socket_of(zmq.PUSH, connect=(ended,))
    back = [socket_of(zmq.PUSH, connect=(address,)) for address in arrived]
    producers = _ready()["producers"]
    left, number, end_s = len(producers), 0, 0.0
    known: deque[list[int]] = deque()
    num_asked = 0
    while left or known or num_asked:
        while known and num_asked < FETCHES_IN_FLIGHT:
            _ask(store, known.popleft())
            num_asked += 1
        for ready, _ in _poll(store, note):
            if ready is note:
                ids = json.loads(note.recv())
                if ids:
                    known.append(ids)
                else:
                    left -= 1
                continue
            decoded = _decode_frames(store)
            num_asked -= 1
            if not isinstance(decoded.message, Rollouts):
                raise FatalError(f"the store answered {decoded.message}")
            got = decoded.message.rollouts
            number, end_s = number + len(got), time.monotonic()
            owner = got[0].rollout_id.group_id // _IDS_PER_PRODUCER
            back[producers.index(owner)].send_string(str(len(got)))
            ledger_of_ended.send_json([header.rollout_id.group_id for header in got])
    return {"number": number, "end_s": end_s}


def ledger(endpoint: str, ended: str) -> None:
    """As much of a broker as a store asks for: who it is, and which groups have ended."""
    import uvloop

    uvloop.run(_serve_ledger(endpoint, ended))


async def _serve_ledger(endpoint: str, ended: str) -> None:
    from common.broker_socket import BrokerSocket

    socket, told = BrokerSocket.bind(endpoint), socket_of(zmq.PULL, bind=ended)
    gone: set[int] = set()
    stores: dict[str, str] = {}
    _ready()
    while True:
        await socket.wait_readable(_LEDGER_TICK_S)
        while told.poll(0):
            gone.update(json.loads(told.recv()))
        for incoming in socket.receive_now(64):
            if isinstance(incoming.decoded, Decoded):
                reply = _ledger_reply(incoming.decoded.message, gone, stores)
                socket.send(incoming.peer, incoming.request_id, reply)


def _ledger_reply(message: AnyMessage, gone: set[int], stores: dict[str, str]) -> Reply:
    if isinstance(message, Register):
        if message.role is Role.STORE:
            stores[message.name] = message.payload_endpoint
        return Registered(run_id="bench", broker_nonce="b", heartbeat_s=1.0, lease_s=60.0)
    if isinstance(message, ListEnded):
        ended = tuple(group_id for group_id in message.group_ids if group_id in gone)
        gone.difference_update(ended)
        return Ended(group_ids=ended)
    if isinstance(message, GetStores):
        known = (StoreAddress(name=name, endpoint=where) for name, where in stores.items())
        return Stores(stores=tuple(known))
    return HeartbeatReply()


# --- directly from the producer -------------------------------------------------------------------


def keep(endpoint: str, number_of_producer: str) -> None:
    """The payload server of an actor: ``number`` rollouts in its memory, served until killed."""
    import uvloop

    uvloop.run(_serve_from_memory(endpoint, int(number_of_producer)))


async def _serve_from_memory(endpoint: str, number_of_producer: int) -> None:
    from common.broker_socket import BrokerSocket
    from common.metrics import Metrics
    from common.payloads.backing import MemoryBacking
    from common.payloads.server import PayloadServer
    from common.payloads.service import PayloadService

    backing, frames = MemoryBacking(), [memoryview(frame) for frame in arrays()]
    identity = Registered(run_id="bench", broker_nonce="b", heartbeat_s=1.0, lease_s=1.0)
    socket = BrokerSocket.bind(endpoint)
    server = PayloadServer(socket, PayloadService(backing), identity, Metrics())
    first = number_of_producer * _IDS_PER_PRODUCER
    for group_id in range(first, first + _ready()["number"]):
        backing.add(header_of(group_id), frames)
    await server.serve()


def fetch_directly(*arguments: str) -> Orders:
    """Fetch every rollout of these producers: ``NUMBER,ENDPOINT`` each, some requests ahead."""
    servers = [argument.split(",", 1) for argument in arguments]
    sockets = [_connected(endpoint) for _, endpoint in servers]
    share = _ready()["ranges"]
    left = {
        socket: deque(int(number) * _IDS_PER_PRODUCER + item for item in range(share[0], share[1]))
        for (number, _), socket in zip(servers, sockets, strict=True)
    }
    for socket in sockets:
        for _ in range(2):
            _ask_next(socket, left[socket])
    number, end_s, wanted = 0, 0.0, len(servers) * (share[1] - share[0])
    while number < wanted:
        for socket, _ in _poll(*sockets):
            decoded = _decode_frames(socket)
            if not isinstance(decoded.message, Rollouts):
                raise FatalError(f"the producer answered {decoded.message}")
            number, end_s = number + len(decoded.message.rollouts), time.monotonic()
            _ask_next(socket, left[socket])
    return {"number": number, "end_s": end_s}


def _ask_next(socket: zmq.Socket[bytes], left: deque[int]) -> None:
    ids = [left.popleft() for _ in range(min(PUT_ROLLOUTS, len(left)))]
    if ids:
        _ask(socket, ids)


# --- through the broker ---------------------------------------------------------------------------


def submit(endpoint: str, name: str) -> Orders:
    """Lease prompts and submit ``number`` rollouts with their arrays."""
    client = CreditedClient(endpoint, Role.ACTOR, name)
    frames = arrays()
    number = _ready()["number"]
    sent = unanswered = 0
    while sent < number:
        room = min(WINDOW, number - sent)
        client.send(LeasePrompts(serving=_VERSION, max_groups=room, wait_s=10.0))
        for item in client.receive_leases().leases:
            while not client.has_credit(ROLLOUT_BYTES):
                unanswered -= client.receive()
            header = header_of(item.lease.group_id, item.lease.attempt)
            client.send(SubmitRollout(rollout=header), frames)
            sent, unanswered = sent + 1, unanswered + 1
        while unanswered:
            unanswered -= client.receive()
    return {}


def lease(endpoint: str, name: str) -> Orders:
    """Lease rollouts with their arrays, and end their groups, until none is left."""
    verifier, consumer = RawClient(_CONTEXT, endpoint), RawClient(_CONTEXT, endpoint)
    verifier.register(Role.VERIFIER, name)
    consumer.register(Role.COLLECTOR, f"{name}-end")
    _ready()
    number, end_s, ended = 0, 0.0, tuple[int, ...]()
    wait_s = 30.0
    while True:
        message = LeaseRollouts(max_rollouts=PUT_ROLLOUTS, wait_s=wait_s)
        verifier.socket.send_multipart(encode(message, 1))
        if ended:
            consumer.request(EvictGroups(group_ids=ended, reason=EvictReason.RUN_END))
        decoded = _decode_frames(verifier.socket)
        if not isinstance(decoded.message, RolloutLeases):
            raise FatalError(f"the broker answered {decoded.message}")
        leases = decoded.message.leases
        if not leases:
            return {"number": number, "end_s": end_s}
        number, end_s, wait_s = number + len(leases), time.monotonic(), IDLE_MS / 1000
        ended = tuple(item.rollout.rollout_id.group_id for item in leases)


# --- common ---------------------------------------------------------------------------------------


class CreditedClient:
    """A producer's connection, with the byte credit that it was granted."""

    def __init__(self, endpoint: str, role: Role, name: str = "producer") -> None:
        self.socket = _connected(endpoint)
        self._request_ids = itertools.count(1)
        register = Register(role=role, name=name, nonce=name, host="localhost", pid=os.getpid())
        self.send(register)
        registered = _decode_frames(self.socket).message
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
        return self._take(_decode_frames(self.socket).message)

    def receive_leases(self) -> PromptLeases:
        """Wait for prompts."""
        while True:
            message = _decode_frames(self.socket).message
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


def _connected(endpoint: str) -> zmq.Socket[bytes]:
    return socket_of(zmq.DEALER, connect=(endpoint,))


def _ask(socket: zmq.Socket[bytes], group_ids: Sequence[int]) -> None:
    wanted = tuple(header_of(group_id).rollout_id for group_id in group_ids)
    socket.send_multipart(encode(FetchRollouts(rollout_ids=wanted), 1))


def _decode_frames(socket: zmq.Socket[bytes]) -> Decoded:
    parts: list[Buffer] = [frame.buffer for frame in socket.recv_multipart(copy=False)]
    return _refuse_refusal(decode(parts))


def _refuse_refusal(decoded: Decoded) -> Decoded:
    if isinstance(decoded.message, Refused):
        raise FatalError(f"{decoded.message.code}: {decoded.message.reason}")
    return decoded


def _poll(*sockets: zmq.Socket[bytes]) -> Iterator[tuple[zmq.Socket[bytes], int]]:
    poller = zmq.Poller()
    for socket in sockets:
        poller.register(socket, zmq.POLLIN)
    ready = poller.poll(PATIENCE_MS)
    if not ready:
        raise FatalError("nothing came for a minute")
    yield from ready


def _ready() -> Orders:
    """Say so and wait for orders."""
    print(json.dumps({}), flush=True)
    orders: Orders = json.loads(sys.stdin.readline())
    return orders


_KINDS: dict[str, Callable[..., Orders | None]] = {
    "proxy": proxy,
    "push": push,
    "pull": pull,
    "put": put,
    "fetch": fetch,
    "ledger": ledger,
    "keep": keep,
    "fetch-directly": fetch_directly,
    "submit": submit,
    "lease": lease,
}


def main() -> None:
    """Be one of the kinds."""
    die_with_parent()
    print(json.dumps(_KINDS[sys.argv[1]](*sys.argv[2:])), flush=True)


if __name__ == "__main__":
    main()
