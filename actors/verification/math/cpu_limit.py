"""Processor time for one comparison, counted by the kernel.

The handler runs between two bytecodes of the main thread, so it ends long sequences of short steps,
which is all that comparing consists of: single steps are bounded by the limits on sizes. What would
escape both is killed from outside with its process (:mod:`actors.verification.pool`).
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Never


class CpuLimitError(BaseException):
    """The processor time is used up; an ``except Exception`` on the way must not swallow that."""


@contextlib.contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`CpuLimitError` in the block once it has used ``seconds`` of processor time.

    Outside of a main thread there is no limit: signals do not reach other threads. The handler of
    SIGPROF stays in place.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGPROF) is not _stop:  # without it the signal ends the process
        signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def _stop(number: int, frame: FrameType | None) -> Never:
    raise CpuLimitError
