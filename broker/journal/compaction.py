"""Keeps a log within its bound: lets go of dead segments and copies what is live in the oldest.

The disk holds at most twice the live bytes and five segments: the oldest segment is deleted once
nothing in it is live, and the few live records in it are copied to the end when garbage outweighs
them. Each byte is copied at most about once for each byte of garbage that goes.
"""

from __future__ import annotations

from broker.journal.index import Index
from broker.journal.log_reader import LogReader
from broker.journal.log_writer import LogWriter
from broker.journal.records import Kind, encode_number
from broker.journal.segments import Segments
from broker.journal.staging import Staging

COPY_BYTES = 4 << 20
"""Live bytes that one call of :meth:`Compaction.step` copies at most, but for one larger record."""


class Compaction:
    """The upkeep of one log, in bounded pieces."""

    def __init__(
        self,
        segments: Segments,
        index: Index,
        staging: Staging,
        *,
        reader: LogReader,
        writer: LogWriter,
        segment_bytes: int,
        reserved_bytes: int,
    ) -> None:
        """``reserved_bytes`` of a segment are for turns and drops: no copies go there."""
        self._segments = segments
        self._index = index
        self._staging = staging
        self._reader = reader
        self._writer = writer
        self._segment_bytes = segment_bytes
        self._reserved_bytes = reserved_bytes

    @property
    def wants_checkpoint(self) -> bool:
        """Whether a checkpoint would let go of old segments that the disk can no longer spare."""
        oldest = self._segments.numbers[0]
        is_held = oldest != self._segments.active.number and self._index.has_history(oldest)
        return is_held and (self._is_over_bound or self._segments.spare.segment is None)

    def step(self) -> bool:
        """Do a piece; returns whether more is left. Copies are staged for the next write."""
        self._writer.try_spare()
        if not self._staging.is_empty:
            return True
        self._release()
        if self._segments.spare.segment is None:
            return self._compact_on_full_disk()
        return self._is_over_bound and self._compact()

    @property
    def _is_over_bound(self) -> bool:
        bound = 2 * self._index.live_bytes + 3 * self._segment_bytes
        return self._segments.kept_bytes > bound

    def _release(self) -> None:
        """Let go of the oldest segments that hold nothing live.

        They are deleted once the record that says so is durable, and with it whatever made their
        records superfluous: it comes later in the log than all of that.
        """
        dead: list[int] = []
        for number in self._segments.numbers[:-1]:
            if self._index.keyed_bytes_in(number) or self._index.has_history(number):
                break
            dead.append(number)
        if dead:
            body = [encode_number(dead[-1] + 1)]
            floor = self._staging.add(Kind.FLOOR, body, self._segments.durable)
            self._segments.release(dead, floor.sequence)

    def _compact(self) -> bool:
        """Copy live records out of the oldest segment; returns whether that leads anywhere."""
        oldest = self._segments.numbers[0]
        if oldest == self._segments.active.number:  # one large segment of garbage: go on in another
            self._writer.advance(self._staging.next_sequence, 0)
            return True
        keys = self._index.keys_in(oldest)
        left = COPY_BYTES
        for key in keys:
            contents = self._reader.get(key)
            self._staging.put(key, [contents], self._segments.durable)
            left -= len(contents)
            if left <= 0:
                break
        return bool(keys)

    def _compact_on_full_disk(self) -> bool:
        """The same where copies take room that turns may need: only if much is gained by it."""
        active, oldest = self._segments.active, self._segments.numbers[0]
        num_bytes = self._index.keyed_bytes_in(oldest)
        is_gain = oldest != active.number and 2 * num_bytes <= self._segments.size_of(oldest)
        return is_gain and num_bytes <= active.room - self._reserved_bytes and self._compact()
