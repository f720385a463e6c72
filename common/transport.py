"""A client's end of the wire: one typed channel to the broker, over a DEALER socket.

ZeroMQ promises nothing end to end, so every exchange is a request with an id, answered once and
sent again after a reconnect; the broker's handlers treat a repeated request as the same one. Small
requests that are made in one turn of the event loop, or wait for a connection, leave together as
batches (``common.batching``); none waits for others to come. A
slow peer is bounded by its own credit (it asks for ``max_*`` items), an absent broker leaves
requests waiting up to their deadline, and a restarted one is met by registering again and resending
whatever is unanswered. The high-water marks are never reached: a client has at most
``MAX_PENDING_REQUESTS`` requests out and the broker holds at most one reply for each.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import random
import secrets
import socket as system_socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from common.batching import MAX_BATCHED_BYTES, encode_batch
from common.codec import Buffer, Decoded, decode, encode
from common.credit_gate import CreditGate
from common.errors import (
    DecodeError,
    ForbiddenError,
    InfraError,
    RefusedError,
    RequestTimeoutError,
)
from common.flow_control import NO_CREDIT
from common.liveness import Backoff, Finding, Liveness
from common.messages import (
    MAX_BATCH_REQUESTS,
    Ack,
    Acks,
    Credit,
    Heartbeat,
    PutRollouts,
    Refused,
    Register,
    Registered,
    Request,
    ReserveBytes,
    SubmitRollout,
    SubmitVerdict,
)
from common.security import ClientSecurity, explain_handshake, handshake_watch
from common.security_handshake import HANDSHAKE_EVENTS
from common.sockets import MAX_PENDING_REQUESTS, request_id_or_zero, set_common_options
from common.types import Role

_MOVED_POLL_S = 0.5
_HEARTBEAT_S = 2.0  # until the broker has said how often to be heard of
_CONNECTION_EVENTS = HANDSHAKE_EVENTS | zmq.EVENT_DISCONNECTED
_HANDSHAKE_RETRY_S = 0.2
_JOIN_TIMEOUT_S = 60.0
_RESERVE_WAIT_S = 10.0  # a full broker is asked again, and complained of, this often
_SHORTEST_HEARTBEAT_S = 0.2
_NAME_TAKEN_RETRY_S = 0.25
_NAME_TAKEN_WAIT_S = 5.0  # more than the heartbeats that a broker gives a silent process

_log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


@dataclass(slots=True)
class _Pending:
    """A request that has no reply yet, kept whole so that it can be sent again."""

    request_id: int
    parts: list[Buffer]
    reply: asyncio.Future[Decoded]
    opens: bool
    """Whether it is a registration, which every socket begins with."""
    num_bytes: int = 0
    """Bytes of arrays that were sent against credit of one connection, and void on the next."""

    @property
    def fits_batch(self) -> bool:
        """Whether it may leave together with others."""
        is_small = len(self.parts) == 2 and len(self.parts[1]) <= MAX_BATCHED_BYTES
        return is_small and not self.opens


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
        self._handshakes = handshake_watch(security)
        self._shut_out: ForbiddenError | None = None
        self._register = Register(
            role=role,
            name=name,
            nonce=secrets.token_hex(8),
            host=system_socket.gethostname()[:128] or "localhost",
            pid=os.getpid(),
            payload_endpoint=payload_endpoint,
        )
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._joined: zmq.asyncio.Socket | None = None
        self._liveness = Liveness(_HEARTBEAT_S, 0.0)
        self._backoff = Backoff(random.Random(secrets.randbits(64)))
        self._pending: dict[int, _Pending] = {}
        self._waiting: list[_Pending] = []
        """Small requests of this turn of the loop, behind the one that was sent at once."""
        self._has_sent = False
        self._flushes: set[asyncio.Task[None]] = set()
        self._request_ids = itertools.count(1)
        self._room = asyncio.Semaphore(MAX_PENDING_REQUESTS)
        self._gate = CreditGate(self._reserve_bytes, time.monotonic)
        self._maintainer: asyncio.Task[None] | None = None
        self._registering = asyncio.Lock()
        self._registered: Registered | None = None
        self._num_registrations = 0

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
            await channel._register_first(timeout_s)
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

    @property
    def silent_s(self) -> float:
        """How long the broker has said nothing while it was being watched."""
        return self._liveness.silent_s

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
        num_bytes = _bytes_on_credit(message, frames)
        while True:
            seen = self._num_registrations
            if num_bytes:
                deadline += await self._take_credit(num_bytes)
            decoded = await self._exchange(message, frames, deadline - clock(), num_bytes)
            if not isinstance(decoded.message, Refused):
                return decoded
            if decoded.message.code == "unregistered":
                await self._register_again(seen, deadline - clock())
            elif decoded.message.code != NO_CREDIT:
                raise _refusal(decoded.message)

    async def close(self) -> None:
        """Drop the socket; unanswered requests are cancelled."""
        if self._maintainer is not None:
            self._maintainer.cancel()
            await asyncio.gather(self._maintainer, return_exceptions=True)
        for flush in self._flushes:
            flush.cancel()
        for pending in self._pending.values():
            pending.reply.cancel()
        self._context.destroy(linger=0)

    @property
    def blocked_for_s(self) -> float:
        """How long arrays have been waiting for credit; 0 when none do."""
        return self._gate.blocked_for_s

    @property
    def blocked_total_s(self) -> float:
        """Seconds that arrays have waited for credit, over the life of the channel."""
        return self._gate.blocked_total_s

    async def _take_credit(self, num_bytes: int) -> float:
        """Wait for credit; returns for how long, in seconds."""
        clock = asyncio.get_running_loop().time
        started_s = clock()
        await self._gate.take(num_bytes)
        return clock() - started_s

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
        pending = _Pending(
            request_id,
            encode(message, request_id, frames),
            asyncio.get_running_loop().create_future(),
            opens=message is self._register,
            num_bytes=num_bytes,
        )
        try:
            async with asyncio.timeout(max(timeout_s, 0.001)), self._room:
                self._pending[request_id] = pending
                await self._send(pending)
                return await pending.reply
        except TimeoutError:
            raise RequestTimeoutError(
                f"the broker at {self._endpoint()} did not answer {type(message).__name__} "
                f"within {timeout_s:.0f} s{self._silence()} (is it running?)"
            ) from None
        finally:
            self._pending.pop(request_id, None)

    async def _register_first(self, timeout_s: float) -> None:
        """Register, and wait a little for an earlier process of this name to be known as gone."""
        clock = asyncio.get_running_loop().time
        started_s = clock()
        while True:
            try:
                await self._register_again(0, timeout_s - (clock() - started_s))
                return
            except RefusedError as error:
                if error.code != "name_taken" or clock() - started_s > _NAME_TAKEN_WAIT_S:
                    raise
            await asyncio.sleep(_NAME_TAKEN_RETRY_S)

    async def _register_again(self, seen: int, timeout_s: float) -> None:
        """Register once for all the requests that were refused under one registration."""
        async with self._registering:
            if self._num_registrations != seen:
                return
            decoded = await self._exchange(self._register, (), timeout_s)
            if isinstance(decoded.message, Refused):
                raise _refusal(decoded.message)
            if not isinstance(decoded.message, Registered):
                raise DecodeError(f"unexpected reply {type(decoded.message).__name__}")
            self._registered = decoded.message
            self._num_registrations += 1
            self._gate.reset(decoded.message.credit_bytes)
            clock = asyncio.get_running_loop().time
            heartbeat_s = max(decoded.message.heartbeat_s, _SHORTEST_HEARTBEAT_S)
            self._liveness = Liveness(heartbeat_s, clock())

    async def _maintain(self) -> None:
        """Keep one connected socket: open, register, resend, receive until lost, again."""
        while self._shut_out is None:
            endpoint = self._endpoint()
            socket = self._context.socket(zmq.DEALER)
            set_common_options(socket)
            if self._security is not None:
                self._security.secure(socket)
            monitor = socket.get_monitor_socket(_CONNECTION_EVENTS)
            socket.connect(endpoint)
            self._socket = socket
            tasks = (
                asyncio.create_task(self._receive(socket), name="channel-receive"),
                asyncio.create_task(self._join(socket), name="channel-join"),
            )
            try:
                await self._until_lost(monitor, endpoint)
            finally:
                self._socket = self._joined = None
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
            await self._send(pending)
        if self._registered is not None and not opening:
            try:
                await self._register_again(self._num_registrations, _JOIN_TIMEOUT_S)
                _log.info("the broker is back", endpoint=self._endpoint())
            except (InfraError, ForbiddenError, DecodeError):
                pass  # the requests will meet the same refusal and say so
        self._joined = socket
        self._waiting.clear()
        for request_id, pending in list(self._pending.items()):
            if pending.num_bytes:
                void = Refused(code=NO_CREDIT, reason="the connection is another one")
                self._settle(request_id, Decoded(request_id, void, []))
        await _send_all(socket, [item for item in self._pending.values() if not item.opens])

    async def _until_lost(self, monitor: zmq.asyncio.Socket, endpoint: str) -> None:
        """Return when the connection broke, or the broker fell silent or moved without one.

        Where the broker refuses the handshake, that is made known and the next try is put off.
        """
        connected = False
        clock = asyncio.get_running_loop().time
        while True:
            check_s = min(self._liveness.check_s, _MOVED_POLL_S)
            if await monitor.poll(math.ceil(1000 * check_s)):
                parts: list[bytes] = await monitor.recv_multipart()
                event = parse_monitor_message(parts)["event"]
                if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                    event = await asyncio.to_thread(explain_handshake, endpoint, self._security)
                cause = self._handshakes.observe(event, clock())
                if cause is not None:
                    self._shut_out_by(f"the broker at {endpoint} {cause}")
                if event == zmq.EVENT_DISCONNECTED:
                    if connected:
                        _log.warning("the connection to the broker broke", endpoint=endpoint)
                    else:
                        await asyncio.sleep(_HANDSHAKE_RETRY_S)
                    return
                connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
                self._liveness = Liveness(self._liveness.interval_s, clock())
            elif not connected:
                if self._endpoint() != endpoint:
                    return
            elif await self._is_silent(clock()):
                _log.warning(
                    "the broker is silent: connecting anew",
                    endpoint=endpoint,
                    silent_s=round(self.silent_s, 2),
                )
                return

    async def _is_silent(self, now_s: float) -> bool:
        """Ask for a sign of life when it is time; True when none came."""
        finding = self._liveness.look(now_s)
        if finding is Finding.ASK and self._socket is not None:
            probe = encode(Heartbeat(), next(self._request_ids))
            await self._socket.send_multipart(probe)
        return finding is Finding.LOST

    def _silence(self) -> str:
        """What to add to an error when the broker is silent."""
        is_long = self.silent_s > self._liveness.interval_s
        return f" and has been silent for {self.silent_s:.1f} s" if is_long else ""

    def _shut_out_by(self, reason: str) -> None:
        """Fail every request, those under way and those to come."""
        self._shut_out = ForbiddenError(reason)
        for pending in self._pending.values():
            if not pending.reply.done():
                pending.reply.set_exception(self._shut_out)

    async def _send(self, pending: _Pending) -> None:
        """Send now, unless the channel has yet to join: it then sends all that is pending.

        Of the small requests of one turn of the loop the first leaves at once, and those behind it
        as soon as that turn is over.
        """
        socket = self._socket if pending.opens else self._joined
        if socket is None:
            return
        if pending.fits_batch and self._has_sent:
            if not self._waiting:
                self._flushes.add(flush := asyncio.create_task(self._flush(), name="channel-flush"))
                flush.add_done_callback(self._flushes.discard)
            self._waiting.append(pending)
            return
        if pending.fits_batch:
            self._has_sent = True
            asyncio.get_running_loop().call_soon(self._end_turn)
        await self._flush()
        await _send_all(socket, [pending])

    def _end_turn(self) -> None:
        self._has_sent = False

    async def _flush(self) -> None:
        """Send the requests that wait, on the connection that there is by now."""
        waiting, self._waiting = self._waiting, []
        if self._joined is not None:
            await _send_all(self._joined, waiting)

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            parts = await socket.recv_multipart(copy=False)
            self._liveness.heard()
            self._backoff.reset()
            buffers = [part.buffer for part in parts]
            try:
                decoded = decode(buffers)
                if isinstance(decoded.message, Acks):
                    for request_id, ack in decoded.message.acks:
                        self._gate.add(ack.credit_bytes)
                        self._settle(request_id, Decoded(request_id, ack, []))
                    continue
                if isinstance(decoded.message, Ack):
                    self._gate.add(decoded.message.credit_bytes)
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


async def _send_all(socket: zmq.asyncio.Socket, requests: Sequence[_Pending]) -> None:
    """Send what has no reply yet, in order."""
    for parts in _messages([item for item in requests if not item.reply.done()]):
        await socket.send_multipart(parts, copy=False)


def _messages(requests: Sequence[_Pending]) -> Iterator[list[Buffer]]:
    """The frames of these requests in order, small ones that follow each other in batches."""
    small: list[_Pending] = []
    for pending in requests:
        if small and (len(small) == MAX_BATCH_REQUESTS or not pending.fits_batch):
            yield _batch_of(small)
            small = []
        if pending.fits_batch:
            small.append(pending)
        else:
            yield pending.parts
    if small:
        yield _batch_of(small)


def _batch_of(small: Sequence[_Pending]) -> list[Buffer]:
    if len(small) == 1:
        return small[0].parts
    return encode_batch([(pending.request_id, pending.parts[1]) for pending in small])


def _bytes_on_credit(message: Request, frames: Sequence[Buffer]) -> int:
    """Bytes of arrays that need credit: those of rollouts, and of verdicts."""
    if not frames or not isinstance(message, SubmitRollout | PutRollouts | SubmitVerdict):
        return 0
    return sum(memoryview(frame).nbytes for frame in frames)


def _refusal(refused: Refused) -> ForbiddenError | RefusedError:
    if refused.code == "forbidden":
        return ForbiddenError(f"the broker refuses: {refused.reason}")
    return RefusedError(refused.code, refused.reason)
