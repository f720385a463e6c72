"""A client's end of the wire: one typed channel to the broker, over a DEALER socket.

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

from common.codec import Buffer, Decoded, decode, encode
from common.errors import DecodeError, RefusedError, RequestTimeoutError
from common.messages import Refused, Register, Registered, Request
from common.sockets import MAX_PENDING_REQUESTS, is_small, request_id_or_zero, set_common_options
from common.types import Role

_MOVED_POLL_MS = 500
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
            set_common_options(socket)
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
        await self._socket.send_multipart(pending.parts, copy=is_small(pending.parts))

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            parts = await socket.recv_multipart(copy=False)
            buffers = [part.buffer for part in parts]
            try:
                decoded = decode(buffers)
                self._settle(decoded.request_id, decoded)
            except DecodeError as error:
                self._settle(request_id_or_zero(buffers), error)

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
