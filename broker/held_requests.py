"""Requests that are answered later: held until there is work or room for them, and tried again.

A *parked* request waits in the line of its kind (:class:`broker.waiting_room.WaitingRoom`) for at
most as long as it asked to; a fetch waits until slow readers leave room for more arrays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from broker.engine import Engine
from broker.exchange import Ask, empty_answer
from broker.fleet import Fleet
from broker.handlers import Handlers
from broker.journal import Journal
from broker.outbox import Outbox
from broker.waiting_room import Parked, WaitingRoom
from broker.wakeups import ALL_KINDS, woken_by
from common.broker_socket import BrokerSocket, Incoming
from common.messages import Heartbeat, LeasePrompts, LeaseRollouts, ReportWeights, Request

_TELLS_SERVING = frozenset((Heartbeat, ReportWeights))
_IN_LINES = frozenset((LeasePrompts, LeaseRollouts))


class HeldRequests:
    """Answers requests, those that can only be answered later included."""

    def __init__(
        self,
        *,
        socket: BrokerSocket,
        journal: Journal,
        engine: Engine,
        fleet: Fleet,
        handlers: Handlers,
        outbox: Outbox,
        names: Mapping[bytes, str],
        max_leaving_bytes: int,
    ) -> None:
        """``names`` tells which client is behind each peer by now."""
        self._socket = socket
        self._journal = journal
        self._engine = engine
        self._fleet = fleet
        self._handlers = handlers
        self._outbox = outbox
        self._names = names
        self._max_leaving_bytes = max_leaving_bytes
        self._waiting = WaitingRoom()
        self._fetches: deque[tuple[Incoming, Ask[Request]]] = deque()
        self._moved: set[type[Request]] = set()

    # --- requests that come in --------------------------------------------------------------------

    def handle(self, incoming: Incoming, ask: Ask[Request]) -> None:
        """Answer a request, or park it."""
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

    def fetch(self, incoming: Incoming, ask: Ask[Request]) -> None:
        """Read arrays for a client as soon as there is room for them."""
        if self._may_send_arrays:
            self.handle(incoming, ask)
        else:
            self._fetches.append((incoming, ask))

    def take_client(self, name: str) -> list[Parked]:
        """Forget and return the parked requests of a client whose connection is over."""
        return self._waiting.take_client(name)

    @property
    def _may_send_arrays(self) -> bool:
        """Whether slow readers leave room for more arrays on their way out."""
        return self._socket.leaving_bytes <= self._max_leaving_bytes

    def _must_wait(self, request: Request) -> bool:
        """Whether there is no room for what this request would bring about."""
        if isinstance(request, LeasePrompts):
            return not self._journal.accepts_payloads
        return isinstance(request, LeaseRollouts) and not self._may_send_arrays

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

    # --- those that are held ----------------------------------------------------------------------

    def try_again(self, now_s: float, *, all_kinds: bool) -> None:
        """Answer what the events of this turn made possible, or anything; end waits that ran out.

        To be called at the end of a turn, before its events are taken from the engine.
        """
        self._retry_fetches()
        self._offer(ALL_KINDS if all_kinds else self._woken(), now_s)
        self._expire(now_s)

    def num_by_kind(self) -> dict[str, int]:
        """Parked requests by the name of their message."""
        return self._waiting.num_by_kind()

    @property
    def has_fetches(self) -> bool:
        """Whether arrays wait for room, which no event will tell of."""
        return bool(self._fetches)

    def next_deadline_s(self) -> float:
        """When the first wait may run out; infinity when nothing is parked."""
        return self._waiting.next_deadline_s()

    def _retry_fetches(self) -> None:
        """Read for those whose turn it is, while there is room for what they get."""
        while self._fetches and self._may_send_arrays:
            incoming, ask = self._fetches.popleft()
            if self._names.get(incoming.peer) == ask.client:
                self.handle(incoming, ask)
                return  # what it gets counts once it has been sent

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

    def _expire(self, now_s: float) -> None:
        for parked in self._waiting.take_expired(now_s):
            answer = empty_answer(parked.request)
            self._outbox.add(parked.peer, parked.request_id, answer)
