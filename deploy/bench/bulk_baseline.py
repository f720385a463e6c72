"""What B1 compares with: PUSH and PULL, ``zmq.proxy`` and the least that a store can do."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence

import zmq
from xxhash import xxh3_64

from common.codec import encode
from common.messages import PutRollouts
from deploy.bench.bulk_wire import (
    CONTEXT,
    PATIENCE_MS,
    ROLLOUT_BYTES,
    Orders,
    arrays,
    header_of,
    orders,
    socket_of,
)

IDLE_MS = 3000
_NOW = int(zmq.NOBLOCK)
_BARE_FILE_BYTES = 64 << 20
_BARE_BATCH = 32


def push(endpoint: str, bind: str = "") -> Orders:
    """Send ``number`` messages of the frames that a rollout has."""
    socket = socket_of(zmq.PUSH, connect=() if bind else (endpoint,), bind=endpoint if bind else "")
    parts = [bytes(part) for part in encode(PutRollouts(rollouts=(header_of(0),)), 1, arrays())]
    for _ in range(orders()["number"]):
        socket.send_multipart(parts, copy=False)
    socket.close()
    CONTEXT.term()
    return {}


def pull(*endpoints: str) -> Orders:
    """Receive until nothing comes any more."""
    socket = socket_of(zmq.PULL, connect=endpoints)
    orders()
    number, end_s = 0, 0.0
    while socket.poll(IDLE_MS if number else PATIENCE_MS):
        socket.recv_multipart(copy=False)
        number, end_s = number + 1, time.monotonic()
    return {"number": number, "end_s": end_s}


def proxy(front: str, back: str) -> None:
    """Forward until killed, all of it in C."""
    frontend, backend = _both_ends(front, back)
    orders()
    zmq.proxy(frontend, backend)


def bare_store(front: str, back: str, path: str) -> None:
    """Forward until killed, but first write each message, with its XXH3, into a file in use.

    What every store has to do, without a protocol: no requests, credit, index or promises. A batch
    is one write into pages that were written before, as in a segment that is used again.
    """
    frontend, backend = _both_ends(front, back)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    os.pwrite(descriptor, bytes(_BARE_FILE_BYTES), 0)
    orders()
    offset = 0
    while True:
        messages = _arrived(frontend)
        if offset + 2 * len(messages) * ROLLOUT_BYTES > _BARE_FILE_BYTES:
            offset = 0
        offset += _keep(descriptor, messages, offset)
        while messages:
            backend.send_multipart(messages.popleft(), copy=False)


def _both_ends(front: str, back: str) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    frontend, backend = socket_of(zmq.PULL, bind=front), socket_of(zmq.PUSH, bind=back)
    for socket in (frontend, backend):
        socket.setsockopt(zmq.RCVTIMEO, -1)
        socket.setsockopt(zmq.SNDTIMEO, -1)
    return frontend, backend


def _arrived(socket: zmq.Socket[bytes]) -> deque[Sequence[zmq.Frame]]:
    """What has come, a batch at most; waits for the first message."""
    messages: deque[Sequence[zmq.Frame]] = deque([socket.recv_multipart(copy=False)])
    try:
        while len(messages) < _BARE_BATCH:
            messages.append(socket.recv_multipart(_NOW, copy=False))
    except zmq.Again:
        pass
    return messages


def _keep(descriptor: int, messages: Sequence[Sequence[zmq.Frame]], offset: int) -> int:
    buffers: list[bytes | memoryview] = []
    for frames in messages:
        digest, parts = xxh3_64(), [frame.buffer for frame in frames]
        for part in parts:
            digest.update(part)
        buffers += [digest.digest(), *parts]
    return os.pwritev(descriptor, buffers, offset)
