"""What a broker under load is compared with: messages of the same size through libzmq alone."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import zmq

from common.sockets import set_common_options
from deploy.bench.raw_client import MESSAGE_BYTES, WINDOW
from deploy.bench.round_trips import round_trips

_PRELUDE_BYTES = 16
_CONTEXT: zmq.Context[zmq.Socket[bytes]] = zmq.Context()


class Source:
    """Sends messages of the benchmark's size as fast as its socket takes them."""

    def __init__(self, endpoint: str) -> None:
        self._socket = _socket(zmq.DEALER)
        self._socket.connect(endpoint)
        self._parts = [bytes(_PRELUDE_BYTES), bytes(MESSAGE_BYTES - _PRELUDE_BYTES)]

    def fire(self, number: int) -> dict[str, Any]:
        """Send ``number`` messages."""
        send = self._socket.send
        prelude, header = self._parts
        start_s = time.monotonic()
        for _ in range(number):
            send(prelude, zmq.SNDMORE)
            send(header)
        return {"start_s": start_s}

    def fire_plainly(self, number: int) -> dict[str, Any]:
        """As :meth:`fire`, a multipart message at a time."""
        send = self._socket.send_multipart
        start_s = time.monotonic()
        for _ in range(number):
            send(self._parts)
        return {"start_s": start_s}

    def fire_acknowledged(self, number: int) -> dict[str, Any]:
        """As :meth:`fire`, at most :data:`WINDOW` ahead of the acknowledgements."""
        socket = self._socket
        prelude, header = self._parts
        start_s = time.monotonic()
        under_way = 0
        for _ in range(number):
            while under_way >= WINDOW:
                under_way -= int(socket.recv())
            socket.send(prelude, zmq.SNDMORE)
            socket.send(header)
            under_way += 1
        while under_way:
            under_way -= int(socket.recv())
        return {"start_s": start_s, "end_s": time.monotonic()}

    def probe(self, number: int, pause_s: float, num_lanes: int) -> dict[str, Any]:
        """Seconds from sending a message to its echo, ``num_lanes`` at a time."""

        def receive() -> int:
            self._socket.recv_multipart()
            return 1

        messages, pace = [self._parts] * number, (pause_s, num_lanes)
        return {"seconds": round_trips(self._socket, messages, pace, receive)}


class Sink:
    """Receives what a proxy forwards."""

    def __init__(self, endpoint: str) -> None:
        self._socket = _socket(zmq.DEALER)
        self._socket.connect(endpoint)

    def count(self, number: int) -> dict[str, Any]:
        """Receive ``number`` messages."""
        receive = self._socket.recv
        for _ in range(3 * number):  # routing id, prelude, header
            receive()
        return {"end_s": time.monotonic()}

    def count_plainly(self, number: int) -> dict[str, Any]:
        """As :meth:`count`, a multipart message at a time."""
        receive = self._socket.recv_multipart
        for _ in range(number):
            receive()
        return {"end_s": time.monotonic()}

    def acknowledge(self, number: int) -> dict[str, Any]:
        """Receive ``number`` messages and tell each source how many, once a batch."""
        receive = self._socket.recv
        while number:
            self._socket.poll()
            arrived: Counter[bytes] = Counter()
            try:
                while True:
                    source = receive(zmq.NOBLOCK)
                    receive()
                    receive()
                    arrived[source] += 1
            except zmq.Again:
                pass
            for source, count in arrived.items():
                self._socket.send_multipart([source, str(count).encode()])
            number -= arrived.total()
        return {"end_s": time.monotonic()}


class Proxy:
    """``zmq.proxy``: the fastest that libzmq forwards."""

    def __init__(self, front: str, back: str) -> None:
        self._front, self._back = _socket(zmq.ROUTER), _socket(zmq.DEALER)
        self._front.bind(front)
        self._back.bind(back)

    def run(self) -> dict[str, Any]:
        """Forward until killed."""
        zmq.proxy(self._front, self._back)
        return {}


class Echo:
    """A ROUTER that sends everything back."""

    def __init__(self, endpoint: str) -> None:
        self._socket = _socket(zmq.ROUTER)
        self._socket.bind(endpoint)

    def run(self) -> dict[str, Any]:
        """Echo until killed."""
        while True:
            self._socket.send_multipart(self._socket.recv_multipart())


def _socket(kind: int) -> zmq.Socket[bytes]:
    socket = _CONTEXT.socket(kind)
    set_common_options(socket)
    return socket
