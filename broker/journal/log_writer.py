"""Writes what is staged into segments, in order, and goes from one segment to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broker.journal.index import Index, Place
from broker.journal.records import Kind, SealReason, encode_number, encode_record
from broker.journal.segments import Segments
from broker.journal.staging import Staged, Staging
from common.codec import Buffer
from common.errors import JournalFullError

SPARE_RETRY_S = 0.25
"""A full disk is asked for a spare segment at most so often."""


class LogWriter:
    """Moves records from a :class:`Staging` into :class:`Segments` and notes where they lie."""

    def __init__(
        self,
        segments: Segments,
        index: Index,
        staging: Staging,
        salted: int,
        clock: Callable[[], float],
    ) -> None:
        self._segments = segments
        self._index = index
        self._staging = staging
        self._salted = salted
        self._clock = clock
        self._next_try_s = clock()

    def write(self) -> None:
        """Hand all that is staged to the system: it survives the end of this process.

        Raises :class:`JournalFullError` if the disk has no room; what was not written stays staged,
        and the next call tries again. Raises :class:`JournalError` when the disk fails.
        """
        self._segments.disk.check()
        while self._staging:
            batch, num_bytes = self._staging.batch(self._segments.active.room)
            try:
                if batch:
                    self._write_batch(batch, num_bytes)
                else:
                    self.advance(self._staging.first.sequence, self._staging.first.num_bytes)
            except OSError as error:
                raise self._full(error.strerror or "no space") from None

    def _write_batch(self, batch: Sequence[Staged], num_bytes: int) -> None:
        buffers = [buffer for staged in batch for buffer in staged.buffers]
        segment, offset = self._segments.append(buffers, num_bytes, batch[-1].sequence)
        for _ in batch:
            staged, counts = self._staging.pop()
            if counts:
                self._file(staged, Place(segment, offset, staged.num_bytes))
            offset += staged.num_bytes

    def _file(self, staged: Staged, place: Place) -> None:
        """Note where a record lies."""
        if staged.key is not None:
            self._index.put(staged.key, place)
        elif staged.part is None:
            self._index.add_turn(place)
        elif staged.kind is Kind.PART:
            self._index.add_part(staged.part, place)
        else:
            self._index.set_checkpoint(staged.part, place)

    def advance(self, sequence: int, need_bytes: int) -> None:
        """Go on with this record in the spare segment and have another spare made.

        ``need_bytes`` is the room that the record takes. Raises :class:`JournalFullError`.
        """
        self.try_spare()
        if not self._segments.advance(self.seal(SealReason.FULL, sequence), sequence, need_bytes):
            raise self._full("no room for another segment")
        self.try_spare()

    def try_spare(self) -> None:
        """Have a spare segment, if the disk has room for one."""
        is_due = self._segments.spare.segment is None and self._clock() >= self._next_try_s
        if is_due and not self._segments.make_spare():
            self._next_try_s = self._clock() + SPARE_RETRY_S

    def seal(self, reason: SealReason, sequence: int) -> list[Buffer]:
        """The last record of a segment; ``sequence`` is that of the record after it."""
        durable = self._segments.durable
        return encode_record(self._salted, Kind.SEAL, sequence, durable, [encode_number(reason)])[0]

    def _full(self, cause: str) -> JournalFullError:
        return JournalFullError(
            f"journal {self._segments.directory}: {cause}; {self._staging.num_bytes} bytes wait "
            "(free some space: nothing acknowledged is lost)"
        )
