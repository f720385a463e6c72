"""The broker's sync threads on the virtual loop: a sync takes its time while turns go on."""

from __future__ import annotations

from collections.abc import Callable

from broker.journal.log import Log
from common.errors import JournalError
from tests.fake_disk import Killed
from tests.simulation.virtual_time import VirtualLoop


class VirtualSyncThread:
    """Stands where ``broker.group_commit.SyncThread`` stands; the sync happens at its end."""

    def __init__(
        self,
        loop: VirtualLoop,
        sync_s: float,
        when_killed: Callable[[], None],
        sync: Callable[[], None],
        when_done: Callable[[], None],
    ) -> None:
        self.is_busy = False
        self._loop = loop
        self._sync_s = sync_s
        self._when_killed = when_killed
        self._sync = sync
        self._when_done = when_done
        self._error: JournalError | None = None
        self._is_closed = False

    def begin(self) -> None:
        """Start a sync."""
        self.is_busy = True
        self._loop.call_later(self._sync_s, self._end)

    def check(self) -> None:
        """Raise the error of the last sync, if it failed."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """The process ends: a sync that is under way has no effect any more."""
        self._is_closed = True

    def _end(self) -> None:
        if self._is_closed:
            return
        try:
            self._sync()
        except JournalError as error:
            self._error = error
        except Killed:
            self._when_killed()
            return
        self.is_busy = False
        self._when_done()


class VirtualSyncer:
    """Stands where ``broker.journal.syncer.Syncer`` stands, for relaxed acknowledgements."""

    def __init__(
        self,
        loop: VirtualLoop,
        sync_s: float,
        when_killed: Callable[[], None],
        log: Log,
        window_s: float,
    ) -> None:
        self._loop = loop
        self._sync_s = sync_s
        self._when_killed = when_killed
        self._log = log
        self._window_s = window_s
        self._error: JournalError | None = None
        self._timers = [loop.call_later(window_s + sync_s, self._sync)]

    def check(self) -> None:
        """Raise the error that ended the thread, if one did."""
        if self._error is not None:
            raise self._error

    def look(self) -> None:
        """Have the next segment prepared soon if that is still to be done."""
        self.check()
        if self._log.has_unfinished_spare:
            finish = self._log.finish_spare
            self._timers.append(self._loop.call_later(self._sync_s, self._do, finish))

    def stop(self) -> None:
        """The process ends: what is under way has no effect any more."""
        for timer in self._timers:
            timer.cancel()

    def _sync(self) -> None:
        self._timers = [self._loop.call_later(self._window_s, self._sync)]
        self._do(self._log.sync)

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except JournalError as error:
            self._error = error
        except Killed:
            self.stop()
            self._when_killed()
