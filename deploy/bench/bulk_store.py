"""Both sides of a payload store in benchmark B1, and as much of a ledger as it asks for.

A consumer tells the producer of each rollout that it has arrived, and a producer has at most
``WINDOW`` of them on the way: that is the part of the ledger.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence

import zmq

from common.broker_socket import BrokerSocket
from common.codec import Decoded
from common.errors import FatalError
from common.messages import (
    AnyMessage,
    Ended,
    GetStores,
    HeartbeatReply,
    ListEnded,
    PutRollouts,
    Register,
    Registered,
    Reply,
    Rollouts,
    StoreAddress,
    Stores,
)
from common.types import Role
from deploy.bench.bulk_wire import (
    IDS_PER_PRODUCER,
    PUT_ROLLOUTS,
    ROLLOUT_BYTES,
    WINDOW,
    CreditedClient,
    Orders,
    arrays,
    ask,
    connected,
    header_of,
    orders,
    poll,
    receive,
    socket_of,
)

FETCHES_IN_FLIGHT = 3
_LEDGER_TICK_S = 0.02


class _Producer:
    """Puts rollouts, and tells a consumer of those that were acknowledged."""

    def __init__(self, endpoint: str, first: int, notes: str, arrived: str) -> None:
        self._store = CreditedClient(endpoint, Role.ACTOR)
        self._note = socket_of(zmq.PUSH, connect=(notes,))
        self._done = socket_of(zmq.PULL, bind=arrived)
        self._frames = arrays()
        self._next = first
        self._waiting: deque[list[int]] = deque()
        self._num_under_way = 0

    def run(self, number: int) -> None:
        """Until ``number`` of them were acknowledged."""
        last = self._next + number
        while self._next < last or self._waiting:
            if not self._put(min(PUT_ROLLOUTS, last - self._next)):
                self._take_in()
        self._note.send_json([])
        self._note.close()

    def _put(self, number: int) -> bool:
        has_room = number and self._num_under_way + number <= WINDOW
        if not has_room or not self._store.has_credit(number * ROLLOUT_BYTES):
            return False
        ids = list(range(self._next, self._next + number))
        message = PutRollouts(rollouts=tuple(header_of(item) for item in ids))
        self._store.send(message, self._frames * number)
        self._waiting.append(ids)
        self._next, self._num_under_way = self._next + number, self._num_under_way + number
        return True

    def _take_in(self) -> None:
        for ready in poll(self._store.socket, self._done):
            if ready is self._done:
                self._num_under_way -= int(self._done.recv())
                continue
            for _ in range(self._store.receive()):
                self._note.send_json(self._waiting.popleft())


def put(endpoint: str, number_of_producer: str, notes: str, arrived: str) -> Orders:
    """Put ``number`` rollouts."""
    first = int(number_of_producer) * IDS_PER_PRODUCER
    producer = _Producer(endpoint, first, notes, arrived)
    producer.run(orders()["number"])
    return {}


class _Consumer:
    """Fetches what producers tell of; what it has got, ends."""

    def __init__(self, endpoint: str, notes: str, ended: str, arrived: Sequence[str]) -> None:
        self._store, self._note = connected(endpoint), socket_of(zmq.PULL, bind=notes)
        self._ended = socket_of(zmq.PUSH, connect=(ended,))
        self._back = [socket_of(zmq.PUSH, connect=(address,)) for address in arrived]
        self._known: deque[list[int]] = deque()
        self._num_asked = 0
        self.number, self.end_s = 0, 0.0

    def run(self, producers: Sequence[int]) -> None:
        """Until each of these producers has said that it is done."""
        left = len(producers)
        while left or self._known or self._num_asked:
            while self._known and self._num_asked < FETCHES_IN_FLIGHT:
                ask(self._store, self._known.popleft())
                self._num_asked += 1
            for ready in poll(self._store, self._note):
                if ready is self._store:
                    self._take_rollouts(producers)
                elif ids := json.loads(self._note.recv()):
                    self._known.append(ids)
                else:
                    left -= 1

    def _take_rollouts(self, producers: Sequence[int]) -> None:
        message = receive(self._store).message
        self._num_asked -= 1
        if not isinstance(message, Rollouts):
            raise FatalError(f"the store answered {message}")
        group_ids = [header.rollout_id.group_id for header in message.rollouts]
        self.number, self.end_s = self.number + len(group_ids), time.monotonic()
        owner = producers.index(group_ids[0] // IDS_PER_PRODUCER)
        self._back[owner].send_string(str(len(group_ids)))
        self._ended.send_json(group_ids)


def fetch(endpoint: str, notes: str, ended: str, *arrived: str) -> Orders:
    """Fetch until all producers are done."""
    consumer = _Consumer(endpoint, notes, ended, arrived)
    consumer.run(orders()["producers"])
    return {"number": consumer.number, "end_s": consumer.end_s}


# --- the ledger -----------------------------------------------------------------------------------


def ledger(endpoint: str, ended: str) -> None:
    """Answers who the run is and which groups have ended, until killed."""
    import uvloop

    uvloop.run(_serve_ledger(endpoint, ended))


async def _serve_ledger(endpoint: str, ended: str) -> None:
    socket, told = BrokerSocket.bind(endpoint), socket_of(zmq.PULL, bind=ended)
    gone: set[int] = set()
    stores: dict[str, str] = {}
    orders()
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
