"""The loop that lets a payload service answer.

The service decides, the loop commits, and only then do acknowledgements go out: what a producer was
promised holds when it learns of it. One commit serves all that has arrived meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgspec

from common.broker_socket import BrokerSocket, Incoming
from common.clock import Clock, MonotonicClock
from common.codec import Decoded
from common.errors import DecodeError, RefusedError
from common.flow_control import FlowControl
from common.messages import (
    Ack,
    FetchRollouts,
    Message,
    PutRollouts,
    Refused,
    Register,
    Registered,
    ReserveBytes,
)
from common.metrics import Metrics
from common.payloads.service import Answered, PayloadService
from common.types import Role

RoleOf = Callable[[str], tuple[Role, str] | None]
"""Role and name behind the user id of a connection; None when its key was revoked."""

SENDERS: Mapping[type[Message], frozenset[Role]] = {
    PutRollouts: frozenset({Role.ACTOR}),
    ReserveBytes: frozenset({Role.ACTOR}),
    FetchRollouts: frozenset({Role.VERIFIER, Role.LEARNER, Role.COLLECTOR}),
}
"""Roles that may write and read arrays."""

MESSAGES_PER_TURN = 64
IN_FLIGHT_BYTES = 128 << 20
"""Arrays on their way in, and again on their way out: a larger frame never gets credit."""
_IDLE_WAIT_S = 1.0
_BUSY_WAIT_S = 0.01


class PayloadServer:
    """One ROUTER socket in front of a :class:`PayloadService`.

    Arrays come in against credit and go out as fast as they are read, so that neither many
    producers nor slow readers fill its memory.
    """

    def __init__(
        self,
        socket: BrokerSocket,
        service: PayloadService,
        identity: Registered,
        metrics: Metrics,
        *,
        in_flight_bytes: int = IN_FLIGHT_BYTES,
        role_of: RoleOf | None = None,
        clock: Clock | None = None,
    ) -> None:
        """``in_flight_bytes`` bounds arrays on their way in, and again those on their way out.

        ``role_of`` tells who is behind a connection, where the run has keys.
        """
        self._socket = socket
        self._service = service
        self._identity = identity
        self._metrics = metrics
        self._role_of = role_of
        self._clock = clock or MonotonicClock()
        self._in_flight_bytes = in_flight_bytes
        self._flow = FlowControl(in_flight_bytes, lambda: True)
        self._heard_at_s: dict[str, float] = {}
        self._fetches: deque[Incoming] = deque()
        self.num_messages = 0
        """Requests that came in so far."""

    @property
    def endpoint(self) -> str:
        """Where clients connect."""
        return self._socket.endpoint

    async def serve(self) -> None:
        """Answer until cancelled; raises :class:`FatalError` when the backing cannot keep on."""
        while True:
            await self._socket.wait_readable(_BUSY_WAIT_S if self._fetches else _IDLE_WAIT_S)
            self.turn(self._socket.receive_now(MESSAGES_PER_TURN))
            self._metrics.set("headrace_payload_bytes", self._service.backing.num_bytes)

    def turn(self, incoming: Sequence[Incoming]) -> None:
        """Answer some requests: read at once, acknowledge after the commit."""
        now_s = self._clock.now_s()
        self.num_messages += len(incoming)
        waiting: list[tuple[Incoming, Answered]] = []
        for request in (*self._next_fetch(), *incoming):
            answer = self._answer(request, now_s)
            if answer is not None and answer.waits:
                waiting.append((request, answer))
            elif answer is not None:
                self._send(request, answer)
        refused = self._commit() if waiting else None
        told = set() if refused else {_client(request) for request, _ in waiting}
        back = self._flow.settle(told.__contains__)
        for request, answer in waiting:
            self._send(request, refused or _with_credit(answer, back.pop(_client(request), 0)))
        for item, credit in self._flow.answer(now_s):
            self._socket.send(item.peer, item.request_id, credit)
        self._forget_silent(now_s)

    def _commit(self) -> Answered | None:
        """Keep the promise for this turn; the refusal that its requests get where there is none."""
        try:
            self._service.backing.commit()
        except RefusedError as error:
            return Answered(Refused(code=error.code, reason=error.reason))
        return None

    def _answer(self, incoming: Incoming, now_s: float) -> Answered | None:
        """The answer to one request, None if it comes later."""
        decoded = incoming.decoded
        self._heard_at_s[_client(incoming)] = now_s
        if isinstance(decoded, DecodeError):
            return Answered(Refused(code="malformed", reason=str(decoded)[:4096]))
        if not self._is_permitted(incoming.user_id, type(decoded.message)):
            kind = type(decoded.message).__name__
            return Answered(Refused(code="forbidden", reason=f"{kind} is not for this key's role"))
        try:
            return self._take_in(incoming, decoded, now_s)
        except RefusedError as error:
            return Answered(Refused(code=error.code, reason=error.reason))

    def _take_in(self, incoming: Incoming, decoded: Decoded, now_s: float) -> Answered | None:
        """Arrays cost credit, wishes for credit and reads that slow readers hold up wait."""
        message, client = decoded.message, _client(incoming)
        if isinstance(message, Register):
            credit_bytes = self._flow.connect(client)
            return Answered(msgspec.structs.replace(self._identity, credit_bytes=credit_bytes))
        if isinstance(message, ReserveBytes):
            self._flow.reserve(message, incoming.peer, incoming.request_id, client, now_s)
            return None
        if isinstance(message, PutRollouts):
            self._flow.arrive(client, sum(map(len, decoded.frames)))
        if isinstance(message, FetchRollouts) and not self._may_send_arrays:
            self._fetches.append(incoming)
            return None
        return self._service.handle(message, decoded.frames)

    @property
    def _may_send_arrays(self) -> bool:
        return self._socket.leaving_bytes <= self._in_flight_bytes

    def _next_fetch(self) -> list[Incoming]:
        """The oldest read that was held up, once there is room for what it gets."""
        return [self._fetches.popleft()] if self._fetches and self._may_send_arrays else []

    def _forget_silent(self, now_s: float) -> None:
        """A client that is gone holds no credit; one that lives after all asks for it anew."""
        for client, heard_at_s in list(self._heard_at_s.items()):
            if now_s - heard_at_s >= self._identity.lease_s:
                del self._heard_at_s[client]
                self._flow.disconnect(client)

    def _is_permitted(self, user_id: str, kind: type[Message]) -> bool:
        if self._role_of is None:
            return True
        known = self._role_of(user_id)
        return known is not None and known[0] in SENDERS.get(kind, frozenset(Role))

    def _send(self, incoming: Incoming, answer: Answered) -> None:
        if isinstance(answer.message, Refused):
            self._metrics.inc("headrace_requests_refused_total", code=answer.message.code)
        try:
            self._socket.send(incoming.peer, incoming.request_id, answer.message, answer.frames)
        except ValueError as error:
            refused = Refused(code="too_large", reason=f"{error} (ask for less at once)"[:4096])
            self._socket.send(incoming.peer, incoming.request_id, refused)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _client(incoming: Incoming) -> str:
    return incoming.peer.hex()


def _with_credit(answer: Answered, num_bytes: int) -> Answered:
    if not num_bytes or not isinstance(answer.message, Ack):
        return answer
    ack = msgspec.structs.replace(answer.message, credit_bytes=num_bytes)
    return replace(answer, message=ack)
