"""The server without socket and disk: handlers, held requests, sweeps, turn by turn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from broker.engine import Engine
from broker.exchange import Answer, Ask, Identity, empty_answer
from broker.fleet import Fleet
from broker.handlers import Handlers
from broker.leases import LeaseTable
from broker.ledger import Ledger
from broker.ledger_state import LedgerRules
from broker.simulation.core import EndlessPrompts
from broker.waiting_room import Parked, WaitingRoom
from broker.wakeups import ALL_KINDS, woken_by
from common.codec import Buffer
from common.messages import Heartbeat, LeasePrompts, Register, Reply, ReportWeights, Request
from common.types import RolloutHeader, RolloutId

HEARTBEAT_S = 2.0
LEASE_S = 15.0
SMALL_FRAMES = [memoryview(bytes(64))] * 3
"""The arrays of every rollout: their size is not what is measured."""
_TICK_S = 0.5


class _MemoryPayloads:
    """Headers of payloads by group."""

    def __init__(self) -> None:
        self._kept: dict[int, dict[RolloutId, RolloutHeader]] = {}

    def add_payload(self, header: RolloutHeader, frames: Sequence[Buffer]) -> None:
        """Keep one rollout."""
        self._kept.setdefault(header.rollout_id.group_id, {})[header.rollout_id] = header

    def drop_payloads(self, group_ids: Iterable[int]) -> None:
        """Forget groups."""
        for group_id in group_ids:
            self._kept.pop(group_id, None)

    def payload(self, rollout_id: RolloutId) -> tuple[RolloutHeader, list[memoryview]]:
        """One rollout with three small frames."""
        return self._kept[rollout_id.group_id][rollout_id], SMALL_FRAMES


class FrontDesk:
    """One broker that is given requests and returns replies; it forgets its journal."""

    def __init__(self, rules: LedgerRules) -> None:
        payloads: Any = _MemoryPayloads()
        self._engine = Engine(Ledger(rules), LeaseTable(LEASE_S), payloads, 0.0)
        self._fleet = Fleet(LEASE_S, heartbeat_s=HEARTBEAT_S)
        identity = Identity(
            run_id="fleet", broker_nonce="0", heartbeat_s=HEARTBEAT_S, lease_s=LEASE_S
        )
        self._handlers = Handlers(self._engine, self._fleet, EndlessPrompts(), identity)
        self._waiting = WaitingRoom()
        self._moved: set[type[Request]] = set()
        self._replies: list[tuple[str, Reply]] = []
        self._num_requests = 0
        self._next_tick_s = 0.0

    def turn(self, asked: Sequence[Ask[Request]], now_s: float) -> list[tuple[str, Reply]]:
        """Replies to clients by name: to what is asked, and to what was held."""
        for ask in asked:
            self._take_in(ask)
        is_tick = now_s >= self._next_tick_s
        if is_tick:
            self._next_tick_s = now_s + _TICK_S
            self._handlers.sweep(now_s)
        kinds = ALL_KINDS if is_tick else woken_by(self._engine.events) | self._moved
        self._moved.clear()
        while kinds:
            num_events = len(self._engine.events)
            self._waiting.offer(kinds, lambda parked: self._try(parked, now_s))
            kinds = woken_by(self._engine.events[num_events:])
        for parked in self._waiting.take_expired(now_s):
            self._answer(parked.client, empty_answer(parked.request))
        self._engine.events = []
        self._engine.lengths.clear()
        replies, self._replies = self._replies, []
        return replies

    def _take_in(self, ask: Ask[Request]) -> None:
        if isinstance(ask.message, Register):
            self._answer(ask.client, self._handlers.register(ask.message, ask.now_s))
            return
        self._fleet.hear(ask.client, ask.now_s)
        answer = self._handlers.handle(ask)
        if answer is None:
            self._hold(ask)
            return
        self._answer(ask.client, answer)
        if isinstance(ask.message, Heartbeat | ReportWeights):
            serving = self._fleet.serving(ask.client)
            if serving is not None and self._waiting.serve(ask.client, serving):
                self._moved.add(LeasePrompts)

    def _hold(self, ask: Ask[Request]) -> None:
        self._num_requests += 1
        until_s = ask.now_s + float(getattr(ask.message, "wait_s", 0.0))
        peer = ask.client.encode()
        parked = Parked(peer, self._num_requests, ask.client, ask.message, until_s)
        self._waiting.add(parked, self._fleet.serving(ask.client))

    def _try(self, parked: Parked, now_s: float) -> bool:
        answer = self._handlers.handle(Ask(parked.client, parked.request, (), now_s))
        if answer is not None:
            self._answer(parked.client, answer)
        return answer is not None

    def _answer(self, client: str, answer: Answer) -> None:
        self._replies.append((client, answer.message))
