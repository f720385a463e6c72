"""What a payload server answers to each request, and the loop that lets it answer.

The service decides, the loop commits, and only then do acknowledgements go out: what a producer was
promised holds when it learns of it. One commit serves all that has arrived meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import zmq

from common.broker_socket import BrokerSocket, Incoming
from common.codec import Buffer
from common.errors import DecodeError, RefusedError
from common.messages import (
    Ack,
    FetchRollouts,
    Message,
    PutRollouts,
    Refused,
    Register,
    Registered,
    Reply,
    Request,
    Rollouts,
)
from common.metrics import Metrics
from common.payloads.backing import Backing
from common.types import Role, RolloutHeader

RoleOf = Callable[[str], tuple[Role, str] | None]
"""Role and name behind the user id of a connection; None when its key was revoked."""

SENDERS: Mapping[type[Message], frozenset[Role]] = {
    PutRollouts: frozenset({Role.ACTOR}),
    FetchRollouts: frozenset({Role.VERIFIER, Role.LEARNER, Role.COLLECTOR}),
}
"""Roles that may write and read arrays."""

MESSAGES_PER_TURN = 64
_IDLE_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Answered:
    """One reply with its frames; ``waits`` until the commit of this turn."""

    message: Reply
    frames: Sequence[Buffer] = ()
    waits: bool = False


class PayloadService:
    """Answers requests from a :class:`Backing`; no sockets, no clocks."""

    def __init__(self, backing: Backing, identity: Registered) -> None:
        self.backing = backing
        self._identity = identity

    def handle(self, message: Request | Reply, frames: Sequence[Buffer]) -> Answered:
        """The answer to one message; what no payload server knows is refused."""
        try:
            if isinstance(message, PutRollouts):
                return self._put(message, frames)
            if isinstance(message, FetchRollouts):
                return self._fetch(message)
        except RefusedError as error:
            return Answered(Refused(code=error.code, reason=error.reason))
        if isinstance(message, Register):
            return Answered(self._identity)
        kind = type(message).__name__
        return Answered(Refused(code="malformed", reason=f"a payload server takes no {kind}"))

    def _put(self, message: PutRollouts, frames: Sequence[Buffer]) -> Answered:
        for place, header in enumerate(message.rollouts):
            self.backing.add(header, frames[3 * place : 3 * place + 3])
        return Answered(Ack(promise=self.backing.promise), waits=True)

    def _fetch(self, message: FetchRollouts) -> Answered:
        """What there is of the rollouts asked for: the headers say which."""
        headers: list[RolloutHeader] = []
        frames: list[Buffer] = []
        for rollout_id in message.rollout_ids:
            try:
                header, arrays = self.backing.payload(rollout_id)
            except KeyError:
                continue
            headers.append(header)
            frames.extend(map(held, arrays))
        return Answered(Rollouts(rollouts=tuple(headers)), frames)


class PayloadServer:
    """One ROUTER socket in front of a :class:`PayloadService`."""

    def __init__(
        self,
        socket: BrokerSocket,
        service: PayloadService,
        metrics: Metrics,
        role_of: RoleOf | None = None,
    ) -> None:
        """``role_of`` tells who is behind a connection, where the run has keys."""
        self._socket = socket
        self._service = service
        self._metrics = metrics
        self._role_of = role_of

    @property
    def endpoint(self) -> str:
        """Where clients connect."""
        return self._socket.endpoint

    async def serve(self) -> None:
        """Answer until cancelled; raises :class:`FatalError` when the backing cannot keep on."""
        while True:
            if await self._socket.wait_readable(_IDLE_WAIT_S):
                self.turn(self._socket.receive_now(MESSAGES_PER_TURN))
            self._metrics.set("headrace_payload_bytes", self._service.backing.num_bytes)

    def turn(self, incoming: Sequence[Incoming]) -> None:
        """Answer some requests: read at once, acknowledge after the commit."""
        waiting: list[tuple[Incoming, Answered]] = []
        for request in incoming:
            answer = self._answer(request)
            if answer.waits:
                waiting.append((request, answer))
            else:
                self._send(request, answer)
        refused = self._commit() if waiting else None
        for request, answer in waiting:
            self._send(request, refused or answer)

    def _commit(self) -> Answered | None:
        """Keep the promise for this turn; the refusal that its requests get where there is none."""
        try:
            self._service.backing.commit()
        except RefusedError as error:
            return Answered(Refused(code=error.code, reason=error.reason))
        return None

    def _answer(self, incoming: Incoming) -> Answered:
        decoded = incoming.decoded
        if isinstance(decoded, DecodeError):
            return Answered(Refused(code="malformed", reason=str(decoded)[:4096]))
        if not self._is_permitted(incoming.user_id, type(decoded.message)):
            kind = type(decoded.message).__name__
            return Answered(Refused(code="forbidden", reason=f"{kind} is not for this key's role"))
        return self._service.handle(decoded.message, decoded.frames)

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


def held(frame: Buffer) -> Buffer:
    """``frame`` as it can be sent again without a copy.

    A view of a received :class:`zmq.Frame` is replaced by the frame itself, which libzmq counts
    references to; a view would be wrapped anew, with a callback, for each send.
    """
    owner: object = frame.obj if isinstance(frame, memoryview) else None
    return cast("Buffer", owner) if isinstance(owner, zmq.Frame) else frame
