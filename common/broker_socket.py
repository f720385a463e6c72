"""The broker's end of the wire: one ROUTER socket, read and written without blocking.

The socket is not wrapped in futures: a turn takes everything that has arrived, and only an idle
broker waits, on the descriptor that libzmq signals with. That descriptor tells of *changes*: any
call on the socket may consume a signal whose message is still to be read, so waiting starts by
asking for ``ZMQ_EVENTS`` and asks again after each signal.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import zmq

from common.batching import decode_requests
from common.codec import MAX_FRAME_BYTES, MAX_FRAMES, MAX_HEADER_BYTES, Buffer, Decoded, encode
from common.errors import DecodeError, FatalError
from common.messages import Ack, Reply
from common.sockets import set_common_options

_NOW = int(zmq.NOBLOCK)
_NOW_AND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_NUM_HEAD_PARTS = 2
"""Prelude and header come before the arrays."""
_COPY_BELOW_BYTES = 4096
"""A smaller array frame is copied out: a view would hold all of libzmq's 8 KiB receive buffer."""
_TRACKED_FROM_BYTES = 16 << 10
_SEARCH_FROM_BYTES = 8 << 20
_MAX_TURN_BYTES = 16 << 20
"""Array bytes that one call of :meth:`BrokerSocket.receive_now` takes before it returns."""


class Incoming(msgspec.Struct, frozen=True):
    """A request as the broker receives it; ``decoded`` is the error when it was malformed.

    ``user_id`` is who the security handshake proved the peer to be, "" without one.
    """

    peer: bytes
    request_id: int
    decoded: Decoded | DecodeError
    user_id: str = ""


class Guard(Protocol):
    """What keeps strangers out of a socket for as long as it is open."""

    def close(self) -> None:
        """Stop keeping watch."""
        ...


Secure = Callable[[zmq.Context[Any], zmq.Socket[Any]], Guard]
"""Sets up the security of a socket before it is bound."""


class BrokerSocket:
    """The broker's ROUTER socket.

    ``ROUTER_MANDATORY`` makes a send to a vanished or stuck peer an error instead of a silent loss;
    it is counted in :attr:`num_unroutable`, and the peer asks again when it is back.
    """

    def __init__(
        self, context: zmq.Context[Any], socket: zmq.Socket[bytes], guard: Guard | None = None
    ) -> None:
        self._context = context
        self._socket = socket
        self._guard = guard
        self._waiter: asyncio.Future[None] | None = None
        self._is_woken = False
        self._leaving: deque[tuple[zmq.MessageTracker, int]] = deque()
        self._leaving_bytes = 0
        self.num_unroutable = 0

    @classmethod
    def bind(
        cls,
        endpoint: str,
        secure: Secure | None = None,
        *,
        max_frame_bytes: int = MAX_FRAME_BYTES,
    ) -> BrokerSocket:
        """Listen on ``endpoint``; raises :class:`FatalError` when it is taken.

        ``secure`` is called before the first peer can connect; what it returns is closed with the
        socket. A peer that sends a larger frame than ``max_frame_bytes`` is cut off before libzmq
        takes memory for it.
        """
        context = zmq.Context()
        guard = None
        try:
            context.set(zmq.MAX_SOCKETS, 65535)
            socket = context.socket(zmq.ROUTER)
            set_common_options(socket)
            socket.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            if secure is not None:
                guard = secure(context, socket)
            socket.bind(endpoint)
        except BaseException as error:
            if guard is not None:
                guard.close()
            context.destroy(linger=0)
            if isinstance(error, zmq.ZMQError):
                raise _cannot_bind(endpoint, error) from None
            raise
        return cls(context, socket, guard)

    @property
    def endpoint(self) -> str:
        """Where clients connect: the bound address with its real port."""
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    async def wait_readable(self, timeout_s: float | None = None) -> bool:
        """Wait until a request can be received; False after ``timeout_s`` or :meth:`wake`.

        Only one task may wait. The event loop runs at least once even if a request is there.
        """
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        deadline_s = None if timeout_s is None else loop.time() + timeout_s
        while not self._is_woken and not self._has_input():
            left_s = None if deadline_s is None else deadline_s - loop.time()
            if left_s is not None and left_s <= 0:
                return False
            await self._signal(left_s)
        is_woken, self._is_woken = self._is_woken, False
        return not is_woken

    def wake(self) -> None:
        """Have :meth:`wait_readable` return, the next one if none waits; call it on the loop."""
        self._is_woken = True
        self._settle()

    async def receive(self, limit: int) -> list[Incoming]:
        """Wait for one request, then take what has arrived, up to ``limit``."""
        while not await self.wait_readable():
            pass
        return self.receive_now(limit)

    def receive_now(self, limit: int) -> list[Incoming]:
        """Take ``limit`` requests, if so many have arrived, without waiting.

        Each request of a batch counts as one; the last batch is taken whole. Array frames are views
        of the memory they were received in, unless they are so small that a copy takes less.
        """
        incoming: list[Incoming] = []
        receive = self._receive if self._guard is None else self._receive_proven
        num_bytes = 0
        try:
            while len(incoming) < limit and num_bytes < _MAX_TURN_BYTES:
                num_bytes += receive(incoming)
        except zmq.Again:
            pass
        return incoming

    def send(
        self, peer: bytes, request_id: int, message: Reply, frames: Sequence[Buffer] = ()
    ) -> None:
        """Answer ``peer``, now or never: a peer that is gone or stuck is counted, never raised.

        Raises ``ValueError`` when the message is over a cap. Large frames are not copied and must
        stay as they are until they have left.
        """
        parts = encode(message, request_id, frames)
        send = self._socket.send
        try:
            send(peer, _NOW_AND_MORE)
            for part in parts[:-1]:
                send(_as_received(part), _NOW_AND_MORE, copy=False)
            if frames and (size := sum(map(len, frames))) >= _TRACKED_FROM_BYTES:
                self._send_tracked(parts[-1], size)
            else:
                send(parts[-1], _NOW, copy=False)  # pyzmq copies below its copy_threshold
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self.num_unroutable += 1

    @property
    def leaving_bytes(self) -> int:
        """Bytes of large replies that libzmq still holds because their reader is slow."""
        while self._leaving and self._leaving[0][0].done:
            self._leaving_bytes -= self._leaving.popleft()[1]
        if self._leaving_bytes > _SEARCH_FROM_BYTES:  # a slow reader may hide many that are done
            held = [item for item in self._leaving if not item[0].done]
            self._leaving, self._leaving_bytes = deque(held), sum(size for _, size in held)
        return self._leaving_bytes

    def _send_tracked(self, part: Buffer, size: int) -> None:
        """Send the last part so that it is known when libzmq is done with it, and so with all."""
        frame = zmq.Frame(memoryview(part), track=True, copy=False)
        self._socket.send(frame, _NOW, copy=False, track=True)
        if frame.tracker is not None:
            self._leaving.append((frame.tracker, size))
            self._leaving_bytes += size

    def is_connected(self, peer: bytes) -> bool:
        """Whether ``peer`` still has its connection, as far as libzmq knows by now.

        A ROUTER only says so when it is told to send: it is given a reply that nobody waits for.
        """
        try:
            self._socket.send(peer, _NOW_AND_MORE)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return error.errno == zmq.EAGAIN
        parts = encode(Ack(), 0)
        for part in parts[:-1]:
            self._socket.send(part, _NOW_AND_MORE)
        self._socket.send(parts[-1], _NOW)
        return True

    def close(self) -> None:
        """Send what is queued for up to a second, then close."""
        self._socket.close(linger=1000)
        if self._guard is not None:
            self._guard.close()
        self._context.destroy(linger=1000)

    # --- receiving --------------------------------------------------------------------------------

    def _receive(self, incoming: list[Incoming]) -> int:
        """Take one message; returns its bytes of arrays."""
        peer = self._socket.recv(_NOW)
        return self._receive_rest(peer, "", incoming)

    def _receive_proven(self, incoming: list[Incoming]) -> int:
        """As :meth:`_receive`, with the identity that the handshake left on the frame."""
        frame = self._socket.recv(_NOW, copy=False)
        return self._receive_rest(frame.bytes, _user_id(frame), incoming)

    def _receive_rest(self, peer: bytes, user_id: str, incoming: list[Incoming]) -> int:
        """The parts after the routing id; libzmq has them all once it has delivered the first."""
        receive, parts = self._socket.recv, list[Buffer]()
        size, more = 0, True
        while more:  # a frame knows whether more follow; asking the socket takes longer
            frame = receive(_NOW, copy=False)
            more = frame.more
            if len(parts) < _NUM_HEAD_PARTS and len(frame) <= MAX_HEADER_BYTES:
                parts.append(frame.bytes)
                continue
            size += len(frame)
            if len(parts) <= MAX_FRAMES + _NUM_HEAD_PARTS:  # more is refused, and not kept
                parts.append(frame.bytes if len(frame) < _COPY_BELOW_BYTES else frame.buffer)
        for request_id, decoded in decode_requests(parts):
            incoming.append(Incoming(peer, request_id, decoded, user_id))
        return size

    # --- waiting ----------------------------------------------------------------------------------

    def _has_input(self) -> bool:
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    async def _signal(self, timeout_s: float | None) -> None:
        """Wait for the descriptor, for :meth:`wake` or for ``timeout_s``."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if timeout_s is None else loop.call_later(timeout_s, self._settle)
        loop.add_reader(self._socket, self._settle)
        try:
            await self._waiter
        finally:
            loop.remove_reader(self._socket)
            if timer is not None:
                timer.cancel()
            self._waiter = None

    def _settle(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _as_received(part: Buffer) -> Buffer | zmq.Frame:
    """The frame that ``part`` came in, if it is all of it: libzmq then sends the same memory again.

    Of any other large buffer Python has to learn when libzmq is done with it, by a message to a
    thread of its own: dearer than all else that is done to forward a frame.
    """
    if not isinstance(part, memoryview):
        return part
    frame: object = part.obj
    return frame if isinstance(frame, zmq.Frame) and len(frame) == part.nbytes else part


def _user_id(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


def _cannot_bind(endpoint: str, error: zmq.ZMQError) -> FatalError:
    return FatalError(
        f"broker.endpoint {endpoint!r} cannot be bound: {error.strerror} "
        "(stop the process that uses it, or set another endpoint)"
    )
