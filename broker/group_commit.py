"""Replies held back until the events behind them are safe: one sync of the journal for many.

A turn stages its events and its replies; a *batch* is what has been staged since the last sync
began. Where the disk is quick the server syncs before it goes on. Where it is slow the sync runs in
a thread of its own while the server handles further turns, whose replies gather in the next batch.
Replies leave batch by batch in the order of their turns, also those without events: they may tell
of events that are not safe yet.
"""

from __future__ import annotations

import queue
import statistics
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from broker.outbox import Outgoing
from common.errors import JournalError

SLOW_SYNC_S = 0.0015
"""From here on a sync is worth the hand-over to a thread and back.

While a quick one is waited for, requests gather for one larger turn, which takes less of the
processor than several small ones.
"""
_NUM_ASKED = 9
"""Syncs whose median counts as usual: one that a busy disk holds up does not make it slow."""
_ASK_EVERY = 64


class SyncedJournal(Protocol):
    """What a group commit needs of :class:`broker.journal.Journal`."""

    def write(self) -> None:
        """Put what is staged into the files."""
        ...

    def sync(self) -> None:
        """Return once all that was written before is safe."""
        ...


class SyncThread:
    """Runs one sync at a time beside the event loop."""

    def __init__(self, sync: Callable[[], None], when_done: Callable[[], None]) -> None:
        self._sync = sync
        self._when_done = when_done
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._error: JournalError | None = None
        self.is_busy = False
        self._thread = threading.Thread(target=self._run, name="group-commit", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Start a sync; ``when_done`` is called in the thread at its end."""
        self.is_busy = True
        self._orders.put(True)

    def check(self) -> None:
        """Raise the error of the last sync, if it failed."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread; returns when it is done with the disk."""
        self._orders.put(False)
        self._thread.join()

    def _run(self) -> None:
        while self._orders.get():
            try:
                self._sync()
            except JournalError as error:
                self._error = error
            self.is_busy = False
            self._when_done()


class GroupCommit:
    """Batches of replies between their turn and the sync that covers them."""

    def __init__(self, journal: SyncedJournal, clock: Callable[[], float]) -> None:
        self._journal = journal
        self._clock = clock
        self._when_done: Callable[[], None] | None = None
        self._thread: SyncThread | None = None
        self._staged: list[Outgoing] = []
        self._syncing: list[Outgoing] | None = None
        self._needs_sync = False
        self._took_s: deque[float] = deque(maxlen=_NUM_ASKED)
        """What the last syncs outside of the thread took."""
        self._num_in_thread = 0
        self._began_s = 0.0
        self.last_sync_s: float | None = None
        """Duration of the sync that the last :meth:`advance` saw the end of."""

    def use_thread(self, when_done: Callable[[], None]) -> None:
        """Let slow syncs run beside the caller; ``when_done`` is called in their thread."""
        self._when_done = when_done

    def stage(self, outgoing: list[Outgoing], *, has_events: bool) -> None:
        """Take in the replies of a turn whose events have been written."""
        self._staged += outgoing
        self._needs_sync = self._needs_sync or has_events

    def advance(self) -> list[Outgoing]:
        """Replies that may leave now; begins the sync that the rest waits for.

        Raises :class:`JournalError` when a sync failed; no reply of its batch may ever leave.
        """
        self.last_sync_s = None
        released: list[Outgoing] = []
        if self._syncing is not None and self._thread is not None:
            if self._thread.is_busy:
                return released
            self._thread.check()
            self.last_sync_s = self._clock() - self._began_s
            released, self._syncing = self._syncing, None
        if self._needs_sync:
            self._begin_sync()
        if self._syncing is None:
            released += self._staged
            self._staged = []
        return released

    def close(self) -> None:
        """Wait for a sync that is under way; replies that have not left stay unsent."""
        if self._thread is not None:
            self._thread.close()

    def _begin_sync(self) -> None:
        self._needs_sync = False
        self._began_s = self._clock()
        if self._when_done is not None and self._belongs_in_thread():
            if self._thread is None:
                self._thread = SyncThread(self._journal.sync, self._when_done)
            self._syncing, self._staged = self._staged, []
            self._thread.begin()
            return
        self._journal.sync()
        self.last_sync_s = self._clock() - self._began_s
        if self._num_in_thread:
            self._took_s.clear()
            self._num_in_thread = 0
        self._took_s.append(self.last_sync_s)

    def _belongs_in_thread(self) -> bool:
        """Whether the disk is slow; once in a while that is asked of the disk itself.

        How long a sync took in the thread is not known: the thread may have waited to tell.
        """
        if not self._took_s or self._num_in_thread >= _ASK_EVERY:
            return False
        if statistics.median_low(self._took_s) <= SLOW_SYNC_S:
            return False
        self._num_in_thread += 1
        return True
