"""The broker process: sockets, journal and clock around the pure handlers.

The loop takes what has arrived, handles all of it, writes all events at once, and sends the replies
only when they are synced: whatever a client was told survives a kill at any moment.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import msgspec

from broker import garbage
from broker.connections import Connections
from broker.durable_replies import DurableReplies
from broker.engine import Engine
from broker.exchange import Answer, Ask
from broker.fleet import Fleet
from broker.handlers import Handlers
from broker.held_requests import HeldRequests
from broker.journal import Journal
from broker.outbox import Outbox
from broker.permissions import AccessControl
from broker.status import who_waits
from broker.telemetry import count_requests, export_flow, export_gauges, export_journal
from broker.waiting_room import Parked
from broker.watchdog import Watchdog
from common.broker_socket import BrokerSocket, Incoming
from common.clock import Clock
from common.errors import DecodeError, FatalError, RefusedError
from common.flow_control import NO_CREDIT, FlowControl
from common.messages import (
    FetchReferences,
    FetchRollouts,
    Refused,
    Register,
    Request,
    ReserveBytes,
    SubmitRollout,
    SubmitVerdict,
)
from common.metrics import Metrics

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

MESSAGES_PER_TURN = 2048
"""So many that a slow disk costs little a message, so few that a turn takes under 0.1 s."""
TICK_S = 0.5
_TAKEN_IN = frozenset((ReserveBytes, FetchRollouts, FetchReferences))
_SHORTEST_WAIT_S = 0.01


class Server:
    """One broker at work."""

    def __init__(
        self,
        *,
        socket: BrokerSocket,
        journal: Journal,
        engine: Engine,
        fleet: Fleet,
        handlers: Handlers,
        watchdog: Watchdog,
        clock: Clock,
        metrics: Metrics,
        log: BoundLogger,
        flow: FlowControl,
        access: AccessControl | None = None,
        max_leaving_bytes: int = 64 << 20,
    ) -> None:
        self._socket = socket
        self._journal = journal
        self._engine = engine
        self._fleet = fleet
        self._handlers = handlers
        self._watchdog = watchdog
        self._clock = clock
        self._metrics = metrics
        self._log = log
        self._flow = flow
        self._outbox = Outbox()
        self._connections = Connections(
            socket=socket, fleet=fleet, access=access or AccessControl(), flow=flow, log=log
        )
        self._admitted = self._connections.admitted
        self._held = HeldRequests(
            socket=socket,
            journal=journal,
            engine=engine,
            fleet=fleet,
            handlers=handlers,
            outbox=self._outbox,
            names=self._connections.names,
            max_leaving_bytes=max_leaving_bytes,
        )
        self._replies = DurableReplies(
            socket=socket,
            journal=journal,
            engine=engine,
            watchdog=watchdog,
            flow=flow,
            outbox=self._outbox,
            peers=self._connections.peers,
            clock=clock,
            metrics=metrics,
            log=log,
        )
        self._num_received = 0
        self._next_tick_s = clock.now_s()

    async def serve(self) -> None:
        """Answer requests until cancelled.

        Raises :class:`JournalError` when the journal cannot be written, before any reply of that
        turn is sent, and :class:`FatalError` when the run has come to a standstill.
        """
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(self._socket.wake)

        self._replies.use_thread(wake)
        try:
            while True:
                await self._socket.wait_readable(self._wait_s())
                self.turn(self._socket.receive_now(MESSAGES_PER_TURN))
        finally:
            self._replies.close()

    def turn(self, incoming: Sequence[Incoming]) -> None:
        """Handle some requests: decide, commit, reply."""
        now_s = self._clock.now_s()
        self._admitted.clear()
        for request in incoming:
            self._receive(request, now_s)
        is_tick = now_s >= self._next_tick_s
        if is_tick:
            self._sweep(now_s)
        self._held.try_again(now_s, all_kinds=is_tick)
        self._count(incoming)
        self._replies.commit(now_s)
        self._replies.release()
        self._replies.grant(now_s)
        if is_tick:
            self._tick(now_s)

    # --- requests ---------------------------------------------------------------------------------

    def _receive(self, incoming: Incoming, now_s: float) -> None:
        decoded = incoming.decoded
        if isinstance(decoded, DecodeError):
            self._refuse(incoming, "malformed", str(decoded))
            return
        kind = type(decoded.message)
        if kind is Register:
            self._register(incoming, cast("Register", decoded.message), now_s)
            return
        try:
            sender = incoming.peer, kind, incoming.user_id
            name = self._admitted.get(sender) or self._connections.admit(sender, now_s)
            ask = Ask(name, cast("Request", decoded.message), decoded.frames, now_s)
            if ask.frames or kind in _TAKEN_IN:
                self._take_in(incoming, ask)
            else:
                self._held.handle(incoming, ask)
        except RefusedError as error:
            self._refuse(incoming, error.code, error.reason)

    def _take_in(self, incoming: Incoming, ask: Ask[Request]) -> None:
        """Arrays cost credit, a wish for credit waits in a line of its own, the rest is handled."""
        message = ask.message
        if isinstance(message, ReserveBytes):
            self._flow.reserve(message, incoming.peer, incoming.request_id, ask.client, ask.now_s)
            return
        if ask.frames and isinstance(message, SubmitRollout | SubmitVerdict):
            self._let_in(ask.client, sum(map(len, ask.frames)))
        if isinstance(message, FetchRollouts | FetchReferences):
            self._held.fetch(incoming, ask)
            return
        self._held.handle(incoming, ask)

    def _let_in(self, client: str, num_bytes: int) -> None:
        """Arrays came in; raises :class:`RefusedError` for those that the journal has no room for.

        Their sender keeps them and asks for credit again, of which there is none while that lasts.
        """
        self._flow.arrive(client, num_bytes)
        if not self._journal.has_room(num_bytes):
            self._flow.turn_away(client, num_bytes)
            raise RefusedError(NO_CREDIT, "the disk takes no more rollouts")

    def _register(self, incoming: Incoming, message: Register, now_s: float) -> None:
        """A client connects anew: replies to its former connection would reach nobody."""
        try:
            self._connections.check_registration(message, incoming.user_id, now_s)
        except RefusedError as error:
            self._refuse(incoming, error.code, error.reason)
            return
        self._forget(message.name)
        self._forget(self._connections.names.get(incoming.peer, ""))
        self._connections.open(incoming.peer, message.name)
        answer = self._handlers.register(message, now_s, incoming.user_id)
        credit = self._flow.connect(message.name)
        registered = msgspec.structs.replace(answer.message, credit_bytes=credit)
        self._outbox.add(incoming.peer, incoming.request_id, Answer(registered))
        self._log.info("registered", client=message.name, role=message.role.value, pid=message.pid)

    def _forget(self, name: str) -> list[Parked]:
        """The connection of a client is over, and so is its waiting; returns what was held."""
        self._connections.close(name)
        return self._held.take_client(name)

    def _refuse(self, asked: Incoming | Parked, code: str, reason: str) -> None:
        refused = Answer(Refused(code=code, reason=reason[:4096]))
        self._outbox.add(asked.peer, asked.request_id, refused)

    # --- housekeeping -----------------------------------------------------------------------------

    def _sweep(self, now_s: float) -> None:
        gone = self._handlers.sweep(now_s) + self._expel_revoked(now_s)
        for name in gone:
            for parked in self._forget(name):  # one that lives after all learns it at once
                self._refuse(parked, "unregistered", "silent for too long: register again")
        if gone:
            self._log.warning("clients are gone", clients=gone)

    def _expel_revoked(self, now_s: float) -> list[str]:
        expelled = self._connections.remove_revoked()
        self._handlers.expel(expelled, now_s)
        return expelled

    def _tick(self, now_s: float) -> None:
        self._next_tick_s = now_s + TICK_S
        if not gc.isenabled():
            garbage.tidy(self._num_received)
        self._num_received = 0
        self._handlers.note_parked(self._held.num_by_kind())
        ledger = self._engine.ledger
        export_gauges(self._metrics, ledger, self._fleet)
        export_journal(self._metrics, self._journal)
        export_flow(self._metrics, self._flow, self._socket.leaving_bytes)
        self._metrics.set("headrace_replies_unroutable", self._socket.num_unroutable)
        if ledger.state.sealed:
            self._watchdog.rest(now_s)
            return
        complaint = self._watchdog.complaint(self._fleet.num_by_role(), now_s)
        if complaint is not None:
            held = self._engine.leases.num_by_owner()
            raise FatalError(f"{complaint}; {who_waits(ledger, self._held.num_by_kind(), held)}")

    def _count(self, incoming: Sequence[Incoming]) -> None:
        if incoming:
            self._num_received += len(incoming)
            self._metrics.observe("headrace_turn_messages", len(incoming))
            count_requests(self._metrics, (request.decoded for request in incoming))

    def _wait_s(self) -> float:
        """Time until something is due even if nobody asks."""
        if self._held.has_fetches or self._engine.snapshot is not None:
            return _SHORTEST_WAIT_S
        waits = (self._held.next_deadline_s(), self._flow.next_deadline_s())
        due_s = min(self._next_tick_s, *waits)
        return max(due_s - self._clock.now_s(), _SHORTEST_WAIT_S)
