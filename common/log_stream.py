"""Standard error as a log is written to it: a reader who does not read stops no process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import stat
import threading
from typing import TextIO

_PIECE_BYTES = select.PIPE_BUF
"""What a pipe that is ready to be written takes without waiting."""


class LossyPipe:
    """Writes text to a pipe or socket, and drops it while nobody makes room.

    The first write that gets through afterwards tells how many were lost. Nothing is kept back, so
    whatever was written is there even if the process is killed the moment after.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)
        self._lock = threading.Lock()
        self.num_dropped = 0
        """Writes lost since the last that got through."""

    def write(self, text: str) -> int:
        """Write ``text`` now or not at all; returns its length, as a stream does."""
        with self._lock:
            lost = {"event": "log lines were lost, for nobody read them", "num": self.num_dropped}
            notice = f"\n{json.dumps(lost)}\n" if self.num_dropped else ""
            if self._put((notice + text).encode(errors="backslashreplace")):
                self.num_dropped = 0
            else:
                self.num_dropped += 1
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""

    def _put(self, data: bytes) -> bool:
        """Whether all of ``data`` has found room; a reader that is gone makes none."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while data and self._room.poll(0):
                data = data[os.write(self._descriptor, data[:_PIECE_BYTES]) :]
        return not data


def log_stream(stream: TextIO) -> TextIO | LossyPipe:
    """``stream`` itself, or where it leads into a pipe or socket, one that never waits."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # replaced by something in memory
        return stream
    mode = os.fstat(descriptor).st_mode
    return LossyPipe(descriptor) if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else stream
