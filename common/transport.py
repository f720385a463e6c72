"""The one typed channel between a client and the broker: DEALER on one side, ROUTER on the other.

ZeroMQ promises nothing end to end, so every exchange is a request with an id, answered once and
sent again after a reconnect; the broker's handlers treat a repeated request as the same one. A
slow peer is bounded by its own credit (it asks for ``max_*`` items), an absent broker leaves
requests waiting up to their deadline, and a restarted one is met by registering again and resending
whatever is unanswered. The high-water marks are never reached: a client has at most
``MAX_PENDING_REQUESTS`` requests out and the broker holds at most one reply for each.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import socket as system_socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from common.codec import (
    MAX_MESSAGE_BYTES,
    Buffer,
    Decoded,
    decode,
    encode,
    read_request_id,
)
from common.errors import DecodeError, FatalError, RefusedError, RequestTimeoutError
from common.messages import Refused, Register, Registered, Reply, Request
from common.types import Role

MAX_PENDING_REQUESTS = 4096
_HIGH_WATER_MARK = 2 * MAX_PENDING_REQUESTS
_HANDSHAKE_MS = 3000
_COPY_BELOW_BYTES = (
    65536  # zero-copy sends cost a lock and a callback; below this a copy is cheaper
)
_RECONNECT_MS = 50
_RECONNECT_MAX_MS = 1000
_MOVED_POLL_MS = 500
_DEAD_LINK_MS = 10_000  # a half-open TCP link is given up after this silence
_CONNECTION_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED

_T = TypeVar("_T")


@dataclass(slots=True)
class _Pending:
    """A request that has no reply yet, kept whole so that it can be sent again."""

    parts: list[Buffer]
    reply: asyncio.Future[Decoded]


class Channel:
    """An asynchronous client of the broker, safe for many concurrent requests on one loop.

    A lost connection means a new socket: whatever the old one still had queued is gone with it, and
    every unanswered request is sent once on the new one.
    """

    def __init__(self, *, role: Role, name: str, endpoint: Callable[[], str]) -> None:
        self._endpoint = endpoint
        self._register = Register(
            role=role,
            name=name,
            nonce=secrets.token_hex(8),
            host=system_socket.gethostname()[:128] or "localhost",
            pid=os.getpid(),
        )
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._pending: dict[int, _Pending] = {}
        self._request_ids = itertools.count(1)
        self._room = asyncio.Semaphore(MAX_PENDING_REQUESTS)
        self._maintainer: asyncio.Task[None] | None = None
        self._registering = asyncio.Lock()
        self._registered: Registered | None = None
        self._num_registrations = 0

    @classmethod
    async def connect(
        cls, *, role: Role, name: str, endpoint: Callable[[], str], timeout_s: float = 60.0
    ) -> Channel:
        """Return a registered channel; ``endpoint`` is read again for each new socket.

        Raises :class:`RequestTimeoutError` when no broker answers within ``timeout_s`` and
        :class:`RefusedError` when it answers that this client may not join.
        """
        channel = cls(role=role, name=name, endpoint=endpoint)
        channel._maintainer = asyncio.create_task(channel._maintain(), name="channel")
        try:
            await channel._register_again(0, timeout_s)
        except BaseException:
            await channel.close()
            raise
        return channel

    @property
    def registered(self) -> Registered:
        """The broker's answer to the last registration."""
        if self._registered is None:
            raise RefusedError("unregistered", "the channel has not been connected")
        return self._registered

    async def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        """Send ``message`` and return the reply.

        The deadline covers reconnects and resends. Raises :class:`RequestTimeoutError`, or
        :class:`RefusedError` when the broker refuses.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_s
        while True:
            seen = self._num_registrations
            decoded = await self._exchange(message, frames, deadline - clock())
            if not isinstance(decoded.message, Refused):
                return decoded
            if decoded.message.code != "unregistered":
                raise RefusedError(decoded.message.code, decoded.message.reason)
            await self._register_again(seen, deadline - clock())

    async def close(self) -> None:
        """Drop the socket; unanswered requests are cancelled."""
        if self._maintainer is not None:
            self._maintainer.cancel()
            await asyncio.gather(self._maintainer, return_exceptions=True)
        for pending in self._pending.values():
            pending.reply.cancel()
        self._context.destroy(linger=0)

    async def _exchange(
        self, message: Request, frames: Sequence[Buffer], timeout_s: float
    ) -> Decoded:
        request_id = next(self._request_ids)
        pending = _Pending(
            encode(message, request_id, frames), asyncio.get_running_loop().create_future()
        )
        try:
            async with asyncio.timeout(max(timeout_s, 0.001)), self._room:
                self._pending[request_id] = pending
                await self._send(pending)
                return await pending.reply
        except TimeoutError:
            raise RequestTimeoutError(
                f"the broker at {self._endpoint()} did not answer {type(message).__name__} "
                f"within {timeout_s:.0f} s (is it running?)"
            ) from None
        finally:
            self._pending.pop(request_id, None)

    async def _register_again(self, seen: int, timeout_s: float) -> None:
        """Register once for all the requests that were refused under one registration."""
        async with self._registering:
            if self._num_registrations != seen:
                return
            decoded = await self._exchange(self._register, (), timeout_s)
            if isinstance(decoded.message, Refused):
                raise RefusedError(decoded.message.code, decoded.message.reason)
            if not isinstance(decoded.message, Registered):
                raise DecodeError(f"unexpected reply {type(decoded.message).__name__}")
            self._registered = decoded.message
            self._num_registrations += 1

    async def _maintain(self) -> None:
        """Keep one connected socket: open, resend, receive until lost, again."""
        while True:
            endpoint = self._endpoint()
            socket = self._context.socket(zmq.DEALER)
            _set_common_options(socket)
            monitor = socket.get_monitor_socket(_CONNECTION_EVENTS)
            socket.connect(endpoint)
            self._socket = socket
            receiving = asyncio.create_task(self._receive(socket), name="channel-receive")
            try:
                for pending in list(self._pending.values()):
                    await self._send(pending)
                await self._until_lost(monitor, endpoint)
            finally:
                self._socket = None
                receiving.cancel()
                await asyncio.gather(receiving, return_exceptions=True)
                socket.disable_monitor()
                monitor.close(linger=0)
                socket.close(linger=0)

    async def _until_lost(self, monitor: zmq.asyncio.Socket, endpoint: str) -> None:
        """Return when the connection broke, or when the broker moved before there was one."""
        connected = False
        while True:
            if await monitor.poll(_MOVED_POLL_MS):
                parts: list[bytes] = await monitor.recv_multipart()
                event = parse_monitor_message(parts)["event"]
                connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
                if event == zmq.EVENT_DISCONNECTED:
                    return
            elif not connected and self._endpoint() != endpoint:
                return

    async def _send(self, pending: _Pending) -> None:
        if self._socket is None or pending.reply.done():
            return  # the next socket resends everything that is pending
        copy = sum(memoryview(part).nbytes for part in pending.parts) < _COPY_BELOW_BYTES
        await self._socket.send_multipart(pending.parts, copy=copy)

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            parts = await socket.recv_multipart(copy=False)
            buffers = [part.buffer for part in parts]
            try:
                decoded = decode(buffers)
                self._settle(decoded.request_id, decoded)
            except DecodeError as error:
                self._settle(_request_id_or_zero(buffers), error)

    def _settle(self, request_id: int, outcome: Decoded | DecodeError) -> None:
        """Give a reply to whoever waits for it; a second reply to one request is dropped."""
        pending = self._pending.get(request_id)
        if pending is None or pending.reply.done():
            return
        if isinstance(outcome, DecodeError):
            pending.reply.set_exception(outcome)
        else:
            pending.reply.set_result(outcome)


class SyncChannel:
    """A :class:`Channel` for synchronous code, living on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="sync-channel", daemon=True
        )
        self._thread.start()
        self._channel: Channel | None = None

    @classmethod
    def connect(
        cls, *, role: Role, name: str, endpoint: Callable[[], str], timeout_s: float = 60.0
    ) -> SyncChannel:
        """As :meth:`Channel.connect`."""
        sync = cls()
        try:
            sync._channel = sync._run(
                Channel.connect(role=role, name=name, endpoint=endpoint, timeout_s=timeout_s)
            )
        except BaseException:
            sync.close()
            raise
        return sync

    @property
    def registered(self) -> Registered:
        """As :attr:`Channel.registered`."""
        return self._open_channel().registered

    def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        """As :meth:`Channel.request`, callable from any thread."""
        return self._run(self._open_channel().request(message, frames, timeout_s=timeout_s))

    def close(self) -> None:
        """Close the channel and end its thread; a second call does nothing."""
        if self._loop.is_closed():
            return
        if self._channel is not None:
            self._run(self._channel.close())
            self._channel = None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5.0)
        self._loop.close()

    def _open_channel(self) -> Channel:
        if self._channel is None:
            raise RefusedError("closed", "the channel is closed")
        return self._channel

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


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
        _set_common_options(socket)
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
        copy = sum(memoryview(part).nbytes for part in parts) < _COPY_BELOW_BYTES
        try:
            await self._socket.send_multipart([peer, *parts], copy=copy)
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
        return Incoming(parts[0].bytes, _request_id_or_zero(buffers), error)


def _request_id_or_zero(buffers: Sequence[Buffer]) -> int:
    """The id that a malformed message can still be answered under; no request has id 0."""
    try:
        return read_request_id(buffers)
    except DecodeError:
        return 0


def _set_common_options(socket: zmq.asyncio.Socket) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, _HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, _HIGH_WATER_MARK)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _DEAD_LINK_MS // 4)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _DEAD_LINK_MS)
