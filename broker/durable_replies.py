"""The end of a turn: its events become durable, and only then do its replies leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from broker.engine import Engine
from broker.events import AnyEvent, DeadLettered
from broker.exchange import Answer
from broker.group_commit import GroupCommit
from broker.journal import Journal
from broker.outbox import Outbox, Outgoing
from broker.telemetry import count_events, count_lengths, count_refused
from broker.watchdog import Watchdog
from common.broker_socket import BrokerSocket
from common.clock import Clock
from common.errors import JournalFullError
from common.flow_control import FlowControl
from common.messages import Refused
from common.metrics import Metrics

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger


class DurableReplies:
    """Takes events from the engine to the journal, and answers from the outbox to the socket."""

    def __init__(
        self,
        *,
        socket: BrokerSocket,
        journal: Journal,
        engine: Engine,
        watchdog: Watchdog,
        flow: FlowControl,
        outbox: Outbox,
        peers: Mapping[str, bytes],
        clock: Clock,
        metrics: Metrics,
        log: BoundLogger,
    ) -> None:
        """``peers`` tells how each client is reached by now."""
        self._socket = socket
        self._journal = journal
        self._engine = engine
        self._watchdog = watchdog
        self._flow = flow
        self._outbox = outbox
        self._peers = peers
        self._metrics = metrics
        self._log = log
        self._commits = GroupCommit(journal, clock.now_s)
        self._is_dirty = False
        self._is_full = False

    def use_thread(self, when_done: Callable[[], None]) -> None:
        """Let slow syncs run beside the caller; ``when_done`` is called in their thread."""
        self._commits.use_thread(when_done)

    def close(self) -> None:
        """Wait for a sync that is under way; replies that have not left stay unsent."""
        self._commits.close()

    # --- durability -------------------------------------------------------------------------------

    def commit(self, now_s: float) -> None:
        """Write the events of this turn; nothing was sent for them yet.

        Raises :class:`JournalError` when the journal cannot be written.
        """
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

    def _log_dead_letters(self, happened: Iterable[AnyEvent]) -> None:
        for event in happened:
            if isinstance(event, DeadLettered):
                self._log.warning(
                    "group dead-lettered",
                    group=event.group_id,
                    reason=event.reason,
                    errors=event.errors,
                )

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

    # --- replies ----------------------------------------------------------------------------------

    def release(self) -> None:
        """Send the replies whose events are safe; raises :class:`JournalError`."""
        self._send_all(self._commits.advance())
        if self._commits.last_sync_s is not None:
            self._metrics.observe("headrace_commit_seconds", self._commits.last_sync_s)

    def grant(self, now_s: float) -> None:
        """Answer those who wait for credit, as far as there is any."""
        for item, credit in self._flow.answer(now_s):
            self._send(item.peer, item.request_id, Answer(credit))

    def _send_all(self, outgoing: Iterable[Outgoing]) -> None:
        for item in outgoing:
            if isinstance(item.answer.message, Refused):
                count_refused(self._metrics, item.answer.message.code)
            self._send(item.peer, item.request_id, item.answer)

    def _send(self, peer: bytes, request_id: int, answer: Answer) -> None:
        try:
            self._socket.send(peer, request_id, answer.message, answer.frames)
        except ValueError as error:
            refused = Refused(code="too_large", reason=f"{error} (ask for less at once)"[:4096])
            self._socket.send(peer, request_id, refused)
