"""Time as a value that is passed in, so that pure cores never read a global clock."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds; the origin means nothing."""

    def now_s(self) -> float:
        """Return monotonic seconds."""
        ...


class MonotonicClock:
    """The machine's monotonic clock: not moved by wall-clock jumps."""

    def now_s(self) -> float:
        """Return ``time.monotonic()``."""
        return time.monotonic()


class ManualClock:
    """A clock that a test or a simulation moves by hand."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """Return the time last set."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move time forward by ``seconds`` (>= 0)."""
        if seconds < 0:
            raise ValueError(f"time only moves forward, got {seconds}")
        self._now_s += seconds
