"""The broker process: sockets, journal and clock around the pure handlers.

The loop takes what has arrived, handles all of it, journals all events in one commit, and only then
sends the replies: whatever a client was told survives a kill at any moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from broker.engine import Engine
from broker.exchange import Answer, Ask, empty_answer
from broker.fleet import Fleet
from broker.handlers import Handlers
from broker.journal import Journal
from broker.status import run_status
from broker.telemetry import count_events, count_requests, export_gauges
from broker.waiting_room import Parked, WaitingRoom
from broker.watchdog import Watchdog
from common.broker_socket import BrokerSocket, Incoming
from common.clock import Clock
from common.codec import Buffer
from common.errors import DecodeError, FatalError
from common.messages import Refused, Register, Reply, Request
from common.metrics import Metrics

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

MESSAGES_PER_TURN = 256
TICK_S = 0.5
_SHORTEST_WAIT_S = 0.01

_Outgoing = tuple[bytes, int, Answer]


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
        self._names: dict[bytes, str] = {}
        self._waiting = WaitingRoom()
        self._outgoing: list[_Outgoing] = []
        self._next_tick_s = clock.now_s()

    async def serve(self) -> None:
        """Answer requests until cancelled.

        Raises :class:`JournalError` when the journal cannot be written, before any reply of that
        turn is sent, and :class:`FatalError` when the run has come to a standstill.
        """
        receiving = asyncio.ensure_future(self._socket.receive(MESSAGES_PER_TURN))
        try:
            while True:
                await asyncio.wait({receiving}, timeout=self._wait_s())
                incoming: list[Incoming] = []
                if receiving.done():
                    incoming = receiving.result()
                    receiving = asyncio.ensure_future(self._socket.receive(MESSAGES_PER_TURN))
                await self.turn(incoming)
        finally:
            receiving.cancel()

    async def turn(self, incoming: Sequence[Incoming]) -> None:
        """Handle some requests: decide, commit, reply."""
        now_s = self._clock.now_s()
        for request in incoming:
            self._receive(request, now_s)
        is_tick = now_s >= self._next_tick_s
        if is_tick:
            self._sweep(now_s)
        if self._engine.events or is_tick:
            self._retry_parked(now_s)
        self._expire_parked(now_s)
        self._commit(now_s)
        outgoing, self._outgoing = self._outgoing, []
        for peer, request_id, answer in outgoing:
            await self._send(peer, request_id, answer)
        self._count(incoming, outgoing)
        if is_tick:
            self._tick(now_s)

    # --- requests ---------------------------------------------------------------------------------

    def _receive(self, incoming: Incoming, now_s: float) -> None:
        peer, decoded = incoming.peer, incoming.decoded
        if isinstance(decoded, DecodeError):
            self._refuse(incoming, "malformed", str(decoded))
        elif isinstance(decoded.message, Register):
            self._register(incoming, decoded.message, now_s)
        elif isinstance(decoded.message, Reply):
            kind = type(decoded.message).__name__
            self._refuse(incoming, "malformed", f"{kind} is a reply, not a request")
        elif peer not in self._names or self._names[peer] not in self._fleet:
            self._refuse(incoming, "unregistered", "register first")
        else:
            self._handle(incoming, decoded.message, decoded.frames, now_s)

    def _register(self, incoming: Incoming, message: Register, now_s: float) -> None:
        """A client connects anew: replies to its former connection would reach nobody."""
        for peer in [peer for peer, name in self._names.items() if name == message.name]:
            del self._names[peer]
        self._waiting.remove_clients([message.name])
        self._names[incoming.peer] = message.name
        answer = self._handlers.register(message, now_s)
        self._outgoing.append((incoming.peer, incoming.request_id, answer))
        self._log.info("registered", client=message.name, role=message.role.value, pid=message.pid)

    def _handle(
        self, incoming: Incoming, message: Request, frames: Sequence[Buffer], now_s: float
    ) -> None:
        client = self._names[incoming.peer]
        answer = self._handlers.handle(Ask(client, message, frames, now_s))
        if answer is None:
            until_s = now_s + float(getattr(message, "wait_s", 0.0))
            parked = Parked(incoming.peer, incoming.request_id, client, message, until_s)
            self._waiting.add(parked)
        else:
            self._outgoing.append((incoming.peer, incoming.request_id, answer))

    def _refuse(self, incoming: Incoming, code: str, reason: str) -> None:
        refused = Answer(Refused(code=code, reason=reason[:4096]))
        self._outgoing.append((incoming.peer, incoming.request_id, refused))

    def _retry_parked(self, now_s: float) -> None:
        for parked in self._waiting:
            answer = self._handlers.handle(Ask(parked.client, parked.request, (), now_s))
            if answer is not None:
                self._waiting.discard(parked)
                self._outgoing.append((parked.peer, parked.request_id, answer))

    def _expire_parked(self, now_s: float) -> None:
        for parked in self._waiting.take_expired(now_s):
            answer = empty_answer(parked.request)
            self._outgoing.append((parked.peer, parked.request_id, answer))

    async def _send(self, peer: bytes, request_id: int, answer: Answer) -> None:
        try:
            await self._socket.send(peer, request_id, answer.message, answer.frames)
        except ValueError as error:
            refused = Refused(code="too_large", reason=f"{error} (ask for less at once)"[:4096])
            await self._socket.send(peer, request_id, refused)

    # --- durability and housekeeping --------------------------------------------------------------

    def _commit(self, now_s: float) -> None:
        """Make the events of this turn durable; nothing was sent for them yet."""
        happened, self._engine.events = self._engine.events, []
        if happened:
            self._journal.add_events(happened)
            self._watchdog.observe(happened, now_s)
            if self._journal.wants_snapshot:
                self._journal.add_snapshot(self._engine.ledger.state)
        started_s = self._clock.now_s()
        self._journal.commit()
        if happened:
            self._metrics.observe("headrace_commit_seconds", self._clock.now_s() - started_s)
            count_events(self._metrics, happened)

    def _sweep(self, now_s: float) -> None:
        gone = self._handlers.sweep(now_s)
        self._waiting.remove_clients(gone)
        if gone:
            self._log.warning("clients are gone", clients=gone)
            lost = set(gone)
            self._names = {peer: name for peer, name in self._names.items() if name not in lost}

    def _tick(self, now_s: float) -> None:
        self._next_tick_s = now_s + TICK_S
        self._handlers.num_parked = self._waiting.num_by_kind()
        ledger = self._engine.ledger
        export_gauges(self._metrics, ledger, self._fleet, self._journal.num_bytes)
        if ledger.state.sealed:
            self._watchdog.rest(now_s)
            return
        complaint = self._watchdog.complaint(self._fleet.num_by_role(), now_s)
        if complaint is not None:
            raise FatalError(f"{complaint}; {self._who_waits()}")

    def _who_waits(self) -> str:
        """What each side waits for, in one line."""
        status = run_status(self._engine.ledger, "run", self._waiting.num_by_kind())
        waits = ", ".join(f"{item.name} {item.count}" for item in status.waiting) or "nobody"
        held = self._engine.leases.num_by_owner().items()
        holders = ", ".join(f"{owner} {count}" for owner, count in sorted(held)) or "nobody"
        return (
            f"step {status.policy_step} is being computed; waiting: {waits}; "
            f"leases are held by: {holders}"
        )

    def _count(self, incoming: Sequence[Incoming], outgoing: Sequence[_Outgoing]) -> None:
        kinds = (_kind(item) for item in incoming)
        replies = [answer.message for _, _, answer in outgoing]
        refused = (reply.code for reply in replies if isinstance(reply, Refused))
        count_requests(self._metrics, kinds, refused)

    def _wait_s(self) -> float:
        """Time until something is due even if nobody asks."""
        due_s = min(self._next_tick_s, self._waiting.next_deadline_s())
        return max(due_s - self._clock.now_s(), _SHORTEST_WAIT_S)


def _kind(incoming: Incoming) -> str:
    decoded = incoming.decoded
    return "malformed" if isinstance(decoded, DecodeError) else type(decoded.message).__name__
