"""What both ends of the wire share: socket options and whom to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zmq

from common.codec import MAX_FRAME_BYTES, Buffer, read_request_id
from common.errors import DecodeError

MAX_PENDING_REQUESTS = 4096
"""Requests of one client without a reply; the high-water marks lie above it and are never met."""
_HIGH_WATER_MARK = 2 * MAX_PENDING_REQUESTS
_HANDSHAKE_MS = 3000
_RECONNECT_MS = 50
_RECONNECT_MAX_MS = 1000
_DEAD_LINK_MS = 10_000  # a half-open TCP link is given up after this silence


def set_common_options(socket: zmq.Socket[Any]) -> None:
    """Bound everything that libzmq leaves unbounded."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, _HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, _HIGH_WATER_MARK)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _DEAD_LINK_MS // 4)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _DEAD_LINK_MS)


def request_id_or_zero(buffers: Sequence[Buffer]) -> int:
    """The id that a malformed message can still be answered under; no request has id 0."""
    try:
        return read_request_id(buffers)
    except DecodeError:
        return 0
