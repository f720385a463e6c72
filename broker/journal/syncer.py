"""Syncs a log from a thread of its own, for acknowledgements that do not wait for the disk."""

from __future__ import annotations

import threading
import time

from broker.journal.log import Log
from common.errors import JournalError


class Syncer:
    """Calls :meth:`Log.sync` every ``window_s`` until stopped; an error ends it and is kept."""

    def __init__(self, log: Log, window_s: float) -> None:
        self._log = log
        self._window_s = window_s
        self._error: JournalError | None = None
        self._is_stopped = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal-sync", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the error that ended the thread, if one did."""
        if self._error is not None:
            raise self._error

    def look(self) -> None:
        """Have the thread prepare the next segment at once if that is still to be done."""
        self.check()
        if self._log.has_unfinished_spare:
            self._wake.set()

    def stop(self) -> None:
        """End the thread; returns when it is done with the disk."""
        self._is_stopped = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        due_s = time.monotonic() + self._window_s
        while not self._is_stopped:
            self._wake.wait(max(due_s - time.monotonic(), 0.0))
            self._wake.clear()
            try:
                self._log.finish_spare()
                if time.monotonic() >= due_s:
                    due_s = time.monotonic() + self._window_s
                    self._log.sync()
            except JournalError as error:
                self._error = error
                return
