"""The broker process: sockets, journal and clock around the pure handlers.

The loop takes what has arrived, handles all of it, writes all events at once, and sends the replies
only when they are synced: whatever a client was told survives a kill at any moment.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import msgspec

from broker import garbage
from broker.engine import Engine
from broker.events import AnyEvent, DeadLettered
from broker.exchange import Answer, Ask, empty_answer
from broker.fleet import Fleet
from broker.group_commit import GroupCommit
from broker.handlers import REQUESTS, Handlers
from broker.journal import Journal
from broker.outbox import Outbox, Outgoing
from broker.permissions import NAME_TAKEN, AccessControl
from broker.status import run_status
from broker.telemetry import (
    count_events,
    count_lengths,
    count_refused,
    count_requests,
    export_flow,
    export_gauges,
    export_journal,
)
from broker.waiting_room import Parked, WaitingRoom
from broker.wakeups import ALL_KINDS, woken_by
from broker.watchdog import Watchdog
from common.broker_socket import BrokerSocket, Incoming
from common.clock import Clock
from common.errors import DecodeError, FatalError, JournalFullError, RefusedError
from common.flow_control import NO_CREDIT, FlowControl
from common.messages import (
    AnyMessage,
    FetchReferences,
    FetchRollouts,
    Heartbeat,
    LeasePrompts,
    LeaseRollouts,
    Refused,
    Register,
    ReportWeights,
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
_TELLS_SERVING = frozenset((Heartbeat, ReportWeights))
_TAKEN_IN = frozenset((ReserveBytes, FetchRollouts, FetchReferences))
_IN_LINES = frozenset((LeasePrompts, LeaseRollouts))
_Sender = tuple[bytes, type[AnyMessage], str]
"""Peer, kind of request and proven identity."""
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
        self._access = access or AccessControl()
        self._flow = flow
        self._max_leaving_bytes = max_leaving_bytes
        self._fetches: deque[tuple[Incoming, Ask[Request]]] = deque()
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
        self._peers: dict[str, bytes] = {}
        self._admitted: dict[_Sender, str] = {}
        self._waiting = WaitingRoom()
        self._moved: set[type[Request]] = set()
        self._outbox = Outbox()
        self._commits = GroupCommit(journal, clock.now_s)
        self._is_dirty = False
        self._is_full = False
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

        self._commits.use_thread(wake)
        try:
            while True:
                await self._socket.wait_readable(self._wait_s())
                self.turn(self._socket.receive_now(MESSAGES_PER_TURN))
        finally:
            self._commits.close()

    def turn(self, incoming: Sequence[Incoming]) -> None:
        """Handle some requests: decide, commit, reply."""
        now_s = self._clock.now_s()
        self._admitted.clear()
        for request in incoming:
            self._receive(request, now_s)
        is_tick = now_s >= self._next_tick_s
        if is_tick:
            self._sweep(now_s)
        self._retry_fetches()
        self._offer(ALL_KINDS if is_tick else self._woken(), now_s)
        self._expire_parked(now_s)
        self._count(incoming)
        self._commit(now_s)
        self._reply()
        self._grant(now_s)
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
            name = self._admitted.get(sender) or self._admit(sender, now_s)
            ask = Ask(name, cast("Request", decoded.message), decoded.frames, now_s)
            if ask.frames or kind in _TAKEN_IN:
                self._take_in(incoming, ask)
            else:
                self._handle(incoming, ask)
        except RefusedError as error:
            self._refuse(incoming, error.code, error.reason)

    def _admit(self, sender: _Sender, now_s: float) -> str:
        """Name of a client that may send such a request, which is a sign of life.

        Known for the rest of the turn, so that all requests of a batch are looked at once. Raises
        :class:`RefusedError`.
        """
        peer, kind, user_id = sender
        name = self._names.get(peer, "")
        client = self._fleet.get(name)
        if kind not in REQUESTS:
            raise RefusedError("malformed", f"{kind.__name__} is no request to the broker")
        if client is None:
            raise RefusedError("unregistered", "register first")
        self._access.check_request(kind, client, user_id)
        self._fleet.hear(name, now_s)
        self._admitted[sender] = name
        return name

    def _take_in(self, incoming: Incoming, ask: Ask[Request]) -> None:
        """Arrays cost credit, a wish for credit waits in a line of its own, the rest is handled."""
        message = ask.message
        if isinstance(message, ReserveBytes):
            self._flow.reserve(message, incoming.peer, incoming.request_id, ask.client, ask.now_s)
            return
        if ask.frames and isinstance(message, SubmitRollout | SubmitVerdict):
            self._let_in(ask.client, sum(map(len, ask.frames)))
        if isinstance(message, FetchRollouts | FetchReferences) and not self._may_send_arrays:
            self._fetches.append((incoming, ask))
            return
        self._handle(incoming, ask)

    def _let_in(self, client: str, num_bytes: int) -> None:
        """Arrays came in; raises :class:`RefusedError` for those that the journal has no room for.

        Their sender keeps them and asks for credit again, of which there is none while that lasts.
        """
        self._flow.arrive(client, num_bytes)
        if not self._journal.has_room(num_bytes):
            self._flow.turn_away(client, num_bytes)
            raise RefusedError(NO_CREDIT, "the disk takes no more rollouts")

    @property
    def _may_send_arrays(self) -> bool:
        """Whether slow readers leave room for more arrays on their way out."""
        return self._socket.leaving_bytes <= self._max_leaving_bytes

    def _must_wait(self, request: Request) -> bool:
        """Whether there is no room for what this request would bring about."""
        if isinstance(request, LeasePrompts):
            return not self._journal.accepts_payloads
        return isinstance(request, LeaseRollouts) and not self._may_send_arrays

    def _retry_fetches(self) -> None:
        """Read for those whose turn it is, while there is room for what they get."""
        while self._fetches and self._may_send_arrays:
            incoming, ask = self._fetches.popleft()
            if self._names.get(incoming.peer) == ask.client:
                self._handle(incoming, ask)
                return  # what it gets counts once it has been sent

    def _register(self, incoming: Incoming, message: Register, now_s: float) -> None:
        """A client connects anew: replies to its former connection would reach nobody."""
        try:
            self._access.check_registration(message, incoming.user_id)
            self._refuse_twin(message, now_s)
        except RefusedError as error:
            self._refuse(incoming, error.code, error.reason)
            return
        self._admitted.clear()
        self._forget(message.name)
        self._forget(self._names.get(incoming.peer, ""))
        self._names[incoming.peer] = message.name
        self._peers[message.name] = incoming.peer
        answer = self._handlers.register(message, now_s, incoming.user_id)
        credit = self._flow.connect(message.name)
        registered = msgspec.structs.replace(answer.message, credit_bytes=credit)
        self._outbox.add(incoming.peer, incoming.request_id, Answer(registered))
        self._log.info("registered", client=message.name, role=message.role.value, pid=message.pid)

    def _refuse_twin(self, message: Register, now_s: float) -> None:
        """Two live processes of one name would take each other's work away for ever."""

        def is_connected() -> bool:
            peer = self._peers.get(message.name)
            return peer is not None and self._socket.is_connected(peer)

        twin = self._fleet.live_twin(message, now_s, is_connected)
        if twin is None:
            return
        reason = (
            f"{message.name} on {message.host} (pid {message.pid}) has the name of a live process "
            f"on {twin.host} (pid {twin.pid}); give each a name of its own (--name)"
        )
        self._log.error("refused a second process of one name", reason=reason)
        raise RefusedError(NAME_TAKEN, reason)

    def _forget(self, name: str) -> list[Parked]:
        """The connection of a client is over, and so is its waiting; returns what was held."""
        peer = self._peers.pop(name, None)
        if peer is not None:
            del self._names[peer]
            self._flow.disconnect(name)
        return self._waiting.take_client(name)

    def _handle(self, incoming: Incoming, ask: Ask[Request]) -> None:
        kind = type(ask.message)
        if kind in _IN_LINES and self._is_behind_others(ask):
            answer = None
        else:
            answer = self._handlers.handle(ask)
        if answer is None:
            until_s = ask.now_s + float(getattr(ask.message, "wait_s", 0.0))
            parked = Parked(incoming.peer, incoming.request_id, ask.client, ask.message, until_s)
            self._waiting.add(parked, self._fleet.serving(ask.client))
        else:
            self._outbox.add(incoming.peer, incoming.request_id, answer)
            if kind in _TELLS_SERVING:
                self._follow_serving(ask.client)

    def _is_behind_others(self, ask: Ask[Request]) -> bool:
        """Whether there is no room for what is asked for, or others already wait for it."""
        if self._must_wait(ask.message):
            return True
        if self._waiting.has_line(ask.message, self._fleet.serving(ask.client)):
            self._moved.add(type(ask.message))  # it must not overtake those who wait already
            return True
        return False

    def _follow_serving(self, client: str) -> None:
        """What a client asked for earlier is judged by the weights that it serves by now."""
        serving = self._fleet.serving(client)
        if serving is not None and self._waiting.serve(client, serving):
            self._moved.add(LeasePrompts)

    def _refuse(self, asked: Incoming | Parked, code: str, reason: str) -> None:
        refused = Answer(Refused(code=code, reason=reason[:4096]))
        self._outbox.add(asked.peer, asked.request_id, refused)

    def _woken(self) -> frozenset[type[Request]]:
        moved, self._moved = frozenset(self._moved), set()
        return woken_by(self._engine.events) | moved

    def _offer(self, kinds: frozenset[type[Request]], now_s: float) -> None:
        """Let held requests of these kinds try again.

        Their answers may make events of their own, which may satisfy requests of further kinds: the
        next turn looks at nothing but its own events, so this goes on until nothing more is woken.
        """
        while kinds:
            num_events = len(self._engine.events)
            self._waiting.offer(kinds, lambda parked: self._try(parked, now_s))
            kinds = woken_by(self._engine.events[num_events:])

    def _try(self, parked: Parked, now_s: float) -> bool:
        if self._must_wait(parked.request):
            return False
        answer = self._handlers.handle(Ask(parked.client, parked.request, (), now_s))
        if answer is not None:
            self._outbox.add(parked.peer, parked.request_id, answer)
        return answer is not None

    def _expire_parked(self, now_s: float) -> None:
        for parked in self._waiting.take_expired(now_s):
            answer = empty_answer(parked.request)
            self._outbox.add(parked.peer, parked.request_id, answer)

    def _send(self, peer: bytes, request_id: int, answer: Answer) -> None:
        try:
            self._socket.send(peer, request_id, answer.message, answer.frames)
        except ValueError as error:
            refused = Refused(code="too_large", reason=f"{error} (ask for less at once)"[:4096])
            self._socket.send(peer, request_id, refused)

    # --- durability and housekeeping --------------------------------------------------------------

    def _commit(self, now_s: float) -> None:
        """Make the events of this turn durable; nothing was sent for them yet."""
        happened, self._engine.events = self._engine.events, []
        if happened:
            self._journal.add_events(happened)
            self._watchdog.observe(happened, now_s)
            self._is_dirty = True
            count_events(self._metrics, happened)
            count_lengths(self._metrics, self._engine.lengths)
            self._log_dead_letters(happened)
        if happened or self._engine.snapshot is not None:
            self._advance_snapshot()
        if self._write():
            self._settle()
            self._commits.stage(self._outbox.take(), has_events=self._is_dirty)
            self._is_dirty = self._journal.maintain()
        else:
            self._send_all(self._outbox.take_harmless())
            self._journal.maintain()

    def _advance_snapshot(self) -> None:
        """Journal a slice of the snapshot under way, or begin one that is due."""
        is_under_way = self._engine.snapshot is not None
        self._engine.snapshot = self._journal.advance_snapshot(self._engine.ledger.state)
        self._is_dirty = self._is_dirty or is_under_way

    def _write(self) -> bool:
        """Write what is staged; False while the disk is full.

        What was staged stays so, and the next turn tries again. Until then only those are answered
        who are promised nothing, so that nobody takes a broker that waits for a dead one.
        """
        try:
            self._journal.write()
        except JournalFullError as error:
            if not self._is_full:
                self._log.error("the journal is full: replies wait", reason=str(error))
            self._is_full = True
            return False
        self._is_full = False
        return True

    def _settle(self) -> None:
        """The arrays of this turn are in the journal: their senders may send as many again."""
        back = self._flow.settle(
            lambda name: name in self._peers and self._outbox.acknowledges(self._peers[name])
        )
        for name, num_bytes in back.items():
            self._outbox.give_credit(self._peers[name], num_bytes)

    def _grant(self, now_s: float) -> None:
        """Answer those who wait for credit, as far as there is any."""
        for item, credit in self._flow.answer(now_s):
            self._send(item.peer, item.request_id, Answer(credit))

    def _reply(self) -> None:
        """Send the replies whose events are safe."""
        self._send_all(self._commits.advance())
        if self._commits.last_sync_s is not None:
            self._metrics.observe("headrace_commit_seconds", self._commits.last_sync_s)

    def _send_all(self, outgoing: Iterable[Outgoing]) -> None:
        for item in outgoing:
            if isinstance(item.answer.message, Refused):
                count_refused(self._metrics, item.answer.message.code)
            self._send(item.peer, item.request_id, item.answer)

    def _log_dead_letters(self, happened: Iterable[AnyEvent]) -> None:
        for event in happened:
            if isinstance(event, DeadLettered):
                self._log.warning(
                    "group dead-lettered",
                    group=event.group_id,
                    reason=event.reason,
                    errors=event.errors,
                )

    def _sweep(self, now_s: float) -> None:
        gone = self._handlers.sweep(now_s) + self._expel_revoked(now_s)
        for name in gone:
            for parked in self._forget(name):  # one that lives after all learns it at once
                self._refuse(parked, "unregistered", "silent for too long: register again")
        if gone:
            self._log.warning("clients are gone", clients=gone)

    def _expel_revoked(self, now_s: float) -> list[str]:
        expelled = self._fleet.remove_revoked(self._access.is_revoked)
        self._handlers.expel(expelled, now_s)
        return expelled

    def _tick(self, now_s: float) -> None:
        self._next_tick_s = now_s + TICK_S
        if not gc.isenabled():
            garbage.tidy(self._num_received)
        self._num_received = 0
        self._handlers.num_parked = self._waiting.num_by_kind()
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

    def _count(self, incoming: Sequence[Incoming]) -> None:
        if incoming:
            self._num_received += len(incoming)
            self._metrics.observe("headrace_turn_messages", len(incoming))
            count_requests(self._metrics, (request.decoded for request in incoming))

    def _wait_s(self) -> float:
        """Time until something is due even if nobody asks."""
        if self._fetches or self._engine.snapshot is not None:
            return _SHORTEST_WAIT_S
        waits = (self._waiting.next_deadline_s(), self._flow.next_deadline_s())
        due_s = min(self._next_tick_s, *waits)
        return max(due_s - self._clock.now_s(), _SHORTEST_WAIT_S)
