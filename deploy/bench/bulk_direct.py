"""Both sides of the direct path in benchmark B1: rollouts served from their producer's memory."""

from __future__ import annotations

import time
from collections import deque

import zmq

from common.broker_socket import BrokerSocket
from common.errors import FatalError
from common.messages import Registered, Rollouts
from common.metrics import Metrics
from common.payloads.backing import MemoryBacking
from common.payloads.server import PayloadServer
from common.payloads.service import PayloadService
from deploy.bench.bulk_wire import (
    IDS_PER_PRODUCER,
    PUT_ROLLOUTS,
    Orders,
    arrays,
    ask,
    connected,
    header_of,
    orders,
    poll,
    receive,
)


def keep(endpoint: str, number_of_producer: str) -> None:
    """The payload server of an actor: ``number`` rollouts in its memory, served until killed."""
    import uvloop

    uvloop.run(_serve_from_memory(endpoint, int(number_of_producer)))


async def _serve_from_memory(endpoint: str, number_of_producer: int) -> None:
    backing, frames = MemoryBacking(), [memoryview(frame) for frame in arrays()]
    identity = Registered(run_id="bench", broker_nonce="b", heartbeat_s=1.0, lease_s=1.0)
    socket = BrokerSocket.bind(endpoint)
    server = PayloadServer(socket, PayloadService(backing), identity, Metrics())
    first = number_of_producer * IDS_PER_PRODUCER
    for group_id in range(first, first + orders()["number"]):
        backing.add(header_of(group_id), frames)
    await server.serve()


def fetch_directly(*arguments: str) -> Orders:
    """Fetch every rollout of these producers: ``NUMBER,ENDPOINT`` each, some requests ahead."""
    servers = [argument.split(",", 1) for argument in arguments]
    sockets = [connected(endpoint) for _, endpoint in servers]
    share = orders()["ranges"]
    left = {
        socket: deque(int(number) * IDS_PER_PRODUCER + item for item in range(share[0], share[1]))
        for (number, _), socket in zip(servers, sockets, strict=True)
    }
    for socket in sockets:
        for _ in range(2):
            _ask_next(socket, left[socket])
    number, end_s, wanted = 0, 0.0, len(servers) * (share[1] - share[0])
    while number < wanted:
        for socket in poll(*sockets):
            message = receive(socket).message
            if not isinstance(message, Rollouts):
                raise FatalError(f"the producer answered {message}")
            number, end_s = number + len(message.rollouts), time.monotonic()
            _ask_next(socket, left[socket])
    return {"number": number, "end_s": end_s}


def _ask_next(socket: zmq.Socket[bytes], left: deque[int]) -> None:
    ids = [left.popleft() for _ in range(min(PUT_ROLLOUTS, len(left)))]
    if ids:
        ask(socket, ids)
