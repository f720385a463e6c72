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
import random
import secrets
import time
from collections.abc import Callable, Sequence

import structlog
import zmq
import zmq.asyncio

from common.codec import Buffer, Decoded, decode, encode
from common.connection_watch import CONNECTION_EVENTS, ConnectionWatch
from common.credit_gate import CreditGate, bytes_on_credit
from common.errors import (
    DecodeError,
    ForbiddenError,
    InfraError,
    RefusedError,
    RequestTimeoutError,
)
from common.flow_control import NO_CREDIT
from common.liveness import Backoff
from common.messages import Ack, Acks, Credit, Refused, Registered, Request, ReserveBytes
from common.pending_requests import PendingRequest, PendingRequests, refusal_error
from common.registration import Registration, describe_process
from common.request_sender import RequestSender
from common.security import ClientSecurity
from common.sockets import MAX_PENDING_REQUESTS, request_id_or_zero, set_common_options
from common.types import Role

_JOIN_TIMEOUT_S = 60.0
_RESERVE_WAIT_S = 10.0  # a full broker is asked again, and complained of, this often

_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class Channel:
    """An asynchronous client of the broker, safe for many concurrent requests on one loop.

    A lost connection means a new socket, and so does a broker that is silent for three heartbeats
    (frozen, or gone without a word): whatever the old socket still had queued is gone with it. On
    the new one the channel first registers again; then every unanswered request is sent once.
    """

    def __init__(
        self,
        *,
        role: Role,
        name: str,
        endpoint: Callable[[], str],
        security: ClientSecurity | None = None,
        payload_endpoint: str = "",
    ) -> None:
        self._endpoint = endpoint
        self._security = security
        self._shut_out: ForbiddenError | None = None
        self._registration = Registration(
            describe_process(role, name, payload_endpoint),
            exchange=self._exchange,
            accept=self._enter,
        )
        self._context = zmq.asyncio.Context()
        self._backoff = Backoff(random.Random(secrets.randbits(64)))
        self._request_ids = itertools.count(1)
        self._watch = ConnectionWatch(
            endpoint=endpoint,
            security=security,
            request_ids=self._request_ids,
            shut_out=self._shut_out_by,
        )
        self._pending = PendingRequests()
        self._sender = RequestSender()
        self._room = asyncio.Semaphore(MAX_PENDING_REQUESTS)
        self._gate = CreditGate(self._reserve_bytes, time.monotonic)
        self._maintainer: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        *,
        role: Role,
        name: str,
        endpoint: Callable[[], str],
        security: ClientSecurity | None = None,
        timeout_s: float = 60.0,
        payload_endpoint: str = "",
    ) -> Channel:
        """Return a registered channel; ``endpoint`` is read again for each new socket.

        ``payload_endpoint`` is where this process itself serves arrays of rollouts, if it does.
        Raises :class:`RequestTimeoutError` when no broker answers within ``timeout_s``,
        :class:`RefusedError` when it answers that this client may not join for now and
        :class:`ForbiddenError` when it never will.
        """
        channel = cls(
            role=role,
            name=name,
            endpoint=endpoint,
            security=security,
            payload_endpoint=payload_endpoint,
        )
        channel._maintainer = asyncio.create_task(channel._maintain(), name="channel")
        try:
            await channel._registration.begin(timeout_s)
        except BaseException:
            await channel.close()
            raise
        return channel

    @property
    def registered(self) -> Registered:
        """The broker's answer to the last registration."""
        answer = self._registration.answer
        if answer is None:
            raise RefusedError("unregistered", "the channel has not been connected")
        return answer

    @property
    def silent_s(self) -> float:
        """How long the broker has said nothing while it was being watched."""
        return self._watch.liveness.silent_s

    async def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        """Send ``message`` and return the reply.

        The deadline covers reconnects and resends, and begins when there is credit for the arrays:
        with a broker that is alive and full this waits as long as it takes. Raises
        :class:`RequestTimeoutError`, :class:`RefusedError` when the broker refuses, and
        :class:`ForbiddenError` when the request is none that this client may make.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_s
        num_bytes = bytes_on_credit(message, frames)
        while True:
            seen = self._registration.number
            if num_bytes:
                asked_s = clock()
                await self._gate.take(num_bytes)
                deadline += clock() - asked_s
            decoded = await self._exchange(message, frames, deadline - clock(), num_bytes)
            if not isinstance(decoded.message, Refused):
                return decoded
            if decoded.message.code == "unregistered":
                await self._registration.renew(seen, deadline - clock())
            elif decoded.message.code != NO_CREDIT:
                raise refusal_error(decoded.message)

    async def close(self) -> None:
        """Drop the socket; unanswered requests are cancelled."""
        if self._maintainer is not None:
            self._maintainer.cancel()
            await asyncio.gather(self._maintainer, return_exceptions=True)
        self._sender.close()
        self._pending.cancel()
        self._context.destroy(linger=0)

    @property
    def blocked_for_s(self) -> float:
        """How long arrays have been waiting for credit; 0 when none do."""
        return self._gate.blocked_for_s

    @property
    def blocked_total_s(self) -> float:
        """Seconds that arrays have waited for credit, over the life of the channel."""
        return self._gate.blocked_total_s

    async def _reserve_bytes(self, least: int, most: int) -> int:
        wish = ReserveBytes(least=least, most=most, wait_s=_RESERVE_WAIT_S)
        reply = (await self.request(wish)).message
        if not isinstance(reply, Credit):
            raise DecodeError(f"unexpected reply {type(reply).__name__} to ReserveBytes")
        if not reply.num_bytes:
            _log.warning(
                "no credit: rollouts wait",
                endpoint=self._endpoint(),
                waiting_s=round(self.blocked_for_s),
                reason=reply.reason,
            )
        return reply.num_bytes

    async def _exchange(
        self, message: Request, frames: Sequence[Buffer], timeout_s: float, num_bytes: int = 0
    ) -> Decoded:
        if self._shut_out is not None:
            raise self._shut_out
        request_id = next(self._request_ids)
        pending = PendingRequest(
            request_id,
            encode(message, request_id, frames),
            asyncio.get_running_loop().create_future(),
            opens=message is self._registration.message,
            num_bytes=num_bytes,
        )
        try:
            async with asyncio.timeout(max(timeout_s, 0.001)), self._room:
                self._pending[request_id] = pending
                await self._sender.send(pending)
                return await pending.reply
        except TimeoutError:
            raise RequestTimeoutError(
                f"the broker at {self._endpoint()} did not answer {type(message).__name__} "
                f"within {timeout_s:.0f} s{self._watch.silence()} (is it running?)"
            ) from None
        finally:
            self._pending.pop(request_id, None)

    def _enter(self, registered: Registered) -> None:
        """The broker let this client in: its first credit, and how often it wants to be heard."""
        self._gate.reset(registered.credit_bytes)
        self._watch.expect_every(registered.heartbeat_s)

    async def _maintain(self) -> None:
        """Keep one connected socket: open, register, resend, receive until lost, again."""
        while self._shut_out is None:
            endpoint = self._endpoint()
            socket = self._context.socket(zmq.DEALER)
            set_common_options(socket)
            if self._security is not None:
                self._security.secure(socket)
            monitor = socket.get_monitor_socket(CONNECTION_EVENTS)
            socket.connect(endpoint)
            self._sender.open(socket)
            tasks = (
                asyncio.create_task(self._receive(socket), name="channel-receive"),
                asyncio.create_task(self._join(socket), name="channel-join"),
            )
            try:
                await self._watch.until_lost(socket, monitor, endpoint)
            finally:
                self._sender.lose()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                socket.disable_monitor()
                monitor.close(linger=0)
                socket.close(linger=0)
            await asyncio.sleep(self._backoff.pause_s())

    async def _join(self, socket: zmq.asyncio.Socket) -> None:
        """Register on a new socket if the channel was registered before, then resend the rest."""
        opening = [pending for pending in self._pending.values() if pending.opens]
        for pending in opening:
            await self._sender.send(pending)
        registration = self._registration
        if registration.number and not opening:
            try:
                await registration.renew(registration.number, _JOIN_TIMEOUT_S)
                _log.info("the broker is back", endpoint=self._endpoint())
            except (InfraError, ForbiddenError, DecodeError):
                pass  # the requests will meet the same refusal and say so
        self._pending.void_credit()
        rest = [item for item in self._pending.values() if not item.opens]
        await self._sender.join(socket, rest)

    def _shut_out_by(self, reason: str) -> None:
        """Fail every request, those under way and those to come."""
        self._shut_out = ForbiddenError(reason)
        self._pending.fail(self._shut_out)

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        watch, settle = self._watch, self._pending.settle
        while True:
            parts = await socket.recv_multipart(copy=False)
            watch.liveness.heard()
            self._backoff.reset()
            buffers = [part.buffer for part in parts]
            try:
                decoded = decode(buffers)
                if isinstance(decoded.message, Acks):
                    for request_id, ack in decoded.message.acks:
                        self._gate.add(ack.credit_bytes)
                        settle(request_id, Decoded(request_id, ack, []))
                    continue
                if isinstance(decoded.message, Ack):
                    self._gate.add(decoded.message.credit_bytes)
                settle(decoded.request_id, decoded)
            except DecodeError as error:
                settle(request_id_or_zero(buffers), error)
