"""Does what a sync leaves behind from a thread of its own, so that no promise waits for it."""

from __future__ import annotations

import threading
import time

from broker.journal.log import Log
from common.errors import JournalError

PREWRITE_PAUSE_S = 0.05
"""Between two pieces of a spare: the disk has more urgent things to do."""


class Upkeep:
    """Tidies a log when told to look; the log remembers an error, and says so at its next use."""

    def __init__(self, log: Log, pause_s: float = PREWRITE_PAUSE_S) -> None:
        self._log = log
        self._pause_s = pause_s
        self._is_stopped = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal-upkeep", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Have the thread do what there is to do."""
        if self._log.is_untidy and not self._wake.is_set():
            self._wake.set()

    def stop(self) -> None:
        """End the thread; returns when it is done with the disk."""
        self._is_stopped = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        due_s, is_more_left = time.monotonic(), False
        while not self._is_stopped:
            self._wake.wait(max(due_s - time.monotonic(), 0.0) if is_more_left else None)
            try:
                if self._wake.is_set():
                    self._wake.clear()
                    self._log.tidy()
                    is_more_left = True  # there may be another spare
                if time.monotonic() >= due_s:
                    is_more_left = self._log.prewrite()
                    due_s = time.monotonic() + self._pause_s
            except JournalError:
                return
