"""The end of a learner that was asked to stop: in time, or hard and with nothing lost.

Slurm sends SIGTERM and, a grace time later, SIGTERM and SIGKILL; Kubernetes the same with 30 s
between. The first asks the training loop to stop: it abandons the batch that it is gathering,
checkpoints and ends. What the grace is too short for is not needed: every step has its record, and
older checkpoints are whole.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from common.clock import Clock, MonotonicClock
from common.errors import EXIT_INFRA

ECHO_S = 2.0
"""Slurm signals torchrun and its ranks, and torchrun passes its own on: one request comes twice."""


class StopCounter:
    """Tells a second request to stop from the echo of the first."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or MonotonicClock()
        self._first_s: float | None = None

    def count(self) -> bool:
        """Note one signal; True if it is a second request."""
        now_s = self._clock.now_s()
        if self._first_s is None:
            self._first_s = now_s
        return now_s - self._first_s > ECHO_S


class GracePeriod:
    """Ends the process when a stop takes longer than ``grace_s``, or is asked for again."""

    def __init__(self, grace_s: float, stop: Callable[[str], None]) -> None:
        """``stop`` asks the training loop to stop, for a reason."""
        self._grace_s = grace_s
        self._stop = stop
        self._stops = StopCounter()
        self._timer: threading.Timer | None = None

    def handle_signals(self) -> None:
        """From here on SIGTERM and SIGINT begin the grace period; from the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def begin(self, reason: str) -> None:
        """Ask the loop to stop and let the time run; the second time changes nothing."""
        if self._timer is None:
            what = f"learner.stop_grace_s = {self._grace_s:g} is over"
            self._timer = threading.Timer(self._grace_s, _end, [what])
            self._timer.daemon = True
            self._timer.start()
        self._stop(reason)

    def close(self) -> None:
        """The process ends by itself."""
        if self._timer is not None:
            self._timer.cancel()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._stops.count():
            _end("asked to stop a second time")
        self.begin(signal.Signals(number).name)


def _end(reason: str) -> None:
    print(
        f"headrace: {reason}: the learner ends without another checkpoint (start it again: the "
        "step records and the last checkpoint hold everything)",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_INFRA)
