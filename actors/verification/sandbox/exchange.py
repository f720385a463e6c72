"""What one execution says, read with caps on everything, and what it is told, one input at a time.

No processes and no clock of its own: descriptors come from the caller, who polls them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from actors.verification.sandbox import frames
from actors.verification.sandbox.limits import BoxLimits, Limit

_CHUNK = 1 << 16


class OutputTap:
    """Standard output and error: some is kept, all is counted."""

    def __init__(self, limits: BoxLimits) -> None:
        self._limits = limits
        self._kept: dict[int, bytearray] = {}
        self.num_bytes = 0

    def feed(self, stream: int, chunk: bytes) -> None:
        """Take what ``stream`` (1 or 2) wrote."""
        kept = self._kept.setdefault(stream, bytearray())
        kept += chunk[: self._limits.kept_output_bytes - len(kept)]
        self.num_bytes += len(chunk)

    def kept(self, stream: int) -> bytes:
        """The first bytes that ``stream`` wrote."""
        return bytes(self._kept.get(stream, b""))

    @property
    def over(self) -> bool:
        """True once there is more than may be written."""
        return self.num_bytes > self._limits.max_output_bytes


class Conversation:
    """Input frames out, value frames in, strictly in turn.

    A frame counts as the answer to the input before it. What comes before an input was asked, or
    after the last answer, breaks the protocol: ``error`` says how, and nothing is asked any more.
    """

    def __init__(self, inputs: Sequence[bytes], max_frame_bytes: int) -> None:
        self._inputs = [frames.framed(body) for body in inputs]
        self._max_frame_bytes = max_frame_bytes
        self._received = bytearray()
        self._unsent = memoryview(b"")
        self._asked_s = 0.0
        self._is_ready = False
        self.answers: list[bytes] = []
        self.call_s: list[float] = []
        self.error = ""
        self.load_error = ""
        self.limit: Limit | None = None

    @property
    def done(self) -> bool:
        """True when nothing is left to ask."""
        finished = self._is_ready and len(self.answers) == len(self._inputs)
        return bool(finished or self.error or self.load_error)

    @property
    def wants_to_write(self) -> bool:
        """True while part of an input has not been written."""
        return len(self._unsent) > 0

    def write_to(self, descriptor: int) -> None:
        """Write what fits; raises ``BrokenPipeError`` when nobody reads any more."""
        written = os.write(descriptor, self._unsent[:_CHUNK])
        self._unsent = self._unsent[written:]

    def feed(self, chunk: bytes, now_s: float) -> None:
        """Take what came through the pipe of values."""
        if self.done:
            self.error = self.error or "it sent a frame that nobody asked for"
            return
        self._received += chunk
        if len(self._received) < frames.LENGTH.size:
            return
        (size,) = frames.LENGTH.unpack_from(self._received)
        if size > self._max_frame_bytes:
            self.limit, self.error = Limit.OUTPUT, f"it sent a frame of {size} bytes"
            return
        end = frames.LENGTH.size + size
        if len(self._received) < end:
            return
        body = bytes(self._received[frames.LENGTH.size : end])
        if len(self._received) > end or self.wants_to_write:
            self.error = "it sent a frame before it was asked"
            return
        self._received.clear()
        self._take(body, now_s)

    def _take(self, body: bytes, now_s: float) -> None:
        if self._is_ready:
            self.answers.append(body)
            self.call_s.append(now_s - self._asked_s)
        elif body == frames.READY:
            self._is_ready = True
        elif body.startswith(frames.FAILED):
            self.load_error = body[len(frames.FAILED) :].decode("utf-8", "replace")
            return
        else:
            self.error = "it did not say that it was ready"
            return
        if len(self.answers) < len(self._inputs):
            self._unsent = memoryview(self._inputs[len(self.answers)])
            self._asked_s = now_s
