"""The broker's end of the wire: one ROUTER socket that answers typed requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import zmq
import zmq.asyncio

from common.codec import Buffer, Decoded, decode, encode
from common.errors import DecodeError, FatalError
from common.messages import Reply
from common.sockets import is_small, request_id_or_zero, set_common_options


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as the broker receives it; ``decoded`` is the error when it was malformed."""

    peer: bytes
    request_id: int
    decoded: Decoded | DecodeError


class BrokerSocket:
    """The broker's ROUTER socket.

    ``ROUTER_MANDATORY`` makes a send to a vanished peer an error instead of a silent loss; it is
    counted in :attr:`num_unroutable`, and the peer asks again when it is back.
    """

    def __init__(self, context: zmq.asyncio.Context, socket: zmq.asyncio.Socket) -> None:
        self._context = context
        self._socket = socket
        self.num_unroutable = 0

    @classmethod
    def bind(cls, endpoint: str) -> BrokerSocket:
        """Listen on ``endpoint``; raises :class:`FatalError` when it is taken."""
        context = zmq.asyncio.Context()
        context.set(zmq.MAX_SOCKETS, 65535)
        socket = context.socket(zmq.ROUTER)
        set_common_options(socket)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            context.destroy(linger=0)
            raise FatalError(
                f"broker.endpoint {endpoint!r} cannot be bound: {error.strerror} "
                "(stop the process that uses it, or set another endpoint)"
            ) from None
        return cls(context, socket)

    @property
    def endpoint(self) -> str:
        """Where clients connect: the bound address with its real port."""
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    async def receive(self, limit: int) -> list[Incoming]:
        """Wait for one request, then take what has arrived, up to ``limit``."""
        incoming = [_incoming(await self._socket.recv_multipart(copy=False))]
        while len(incoming) < limit and _has_input(self._socket):
            incoming.append(_incoming(await self._socket.recv_multipart(copy=False)))
        return incoming

    async def send(
        self, peer: bytes, request_id: int, message: Reply, frames: Sequence[Buffer] = ()
    ) -> None:
        """Answer ``peer``; a vanished peer is counted, never raised."""
        parts = encode(message, request_id, frames)
        try:
            await self._socket.send_multipart([peer, *parts], copy=is_small(parts))
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self.num_unroutable += 1

    def close(self) -> None:
        """Send what is queued for up to a second, then close."""
        self._socket.close(linger=1000)
        self._context.destroy(linger=1000)


def _has_input(socket: zmq.asyncio.Socket) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


def _incoming(parts: Sequence[zmq.Frame]) -> Incoming:
    buffers = [part.buffer for part in parts[1:]]
    try:
        decoded = decode(buffers)
        return Incoming(parts[0].bytes, decoded.request_id, decoded)
    except DecodeError as error:
        return Incoming(parts[0].bytes, request_id_or_zero(buffers), error)
