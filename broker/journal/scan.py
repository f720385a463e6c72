"""Reads a log from its first segment to its end and says whether that end is a torn tail or damage.

A crash may leave the newest records torn, in any order, because the disk had not been asked to keep
them yet. Such a tail is cut: nothing in it was acknowledged. Damage to anything that the disk was
known to keep must never pass for a torn tail. What tells them apart:

- every record says up to which sequence all was durable when it was made. A bad record that a later
  one vouches for is damage;
- a segment ends in a seal, and only the last segment may lack one. It has its full size then;
- a segment has its name only once its header and its size are durable, so a bad header, a short
  file and a missing number are damage, as is a segment of another run or log.

One case cannot be told from a torn tail: bits that changed in what the last sync before an unclean
stop wrote, in records that no later record vouches for. After a clean stop the last seal vouches
for every record, and its own loss is damage.
"""

from __future__ import annotations

import bisect
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from broker.journal.files import Files
from broker.journal.records import (
    MAGIC,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Kind,
    RecordHeader,
    SealReason,
    body_of,
    decode_number,
    decode_record_header,
    is_body_sound,
    salt_seed,
)
from broker.journal.segment_file import Segment, disk_error, segment_path
from common.errors import JournalError

_WINDOW_BYTES = 8 << 20
_BLANK = bytes(1 << 20)
_ALIGNMENT = 8
_HISTORY = frozenset({Kind.PUT, Kind.TURN, Kind.PART, Kind.CHECKPOINT})


class DamagedError(JournalError):
    """A log that must not be used; ``path`` and ``offset`` say where it is damaged."""

    def __init__(self, path: Path, offset: int, cause: str) -> None:
        super().__init__(
            f"journal {path}: damaged at byte {offset}: {cause} "
            f"(restore it, or run: headrace journal salvage {path.parent} --into DIRECTORY)"
        )
        self.path = path
        self.offset = offset
        self.cause = cause


class Record(NamedTuple):
    """One sound record; ``data`` holds it at ``position``, among its neighbours."""

    header: RecordHeader
    segment: int
    offset: int
    data: bytes
    position: int

    @property
    def body(self) -> memoryview:
        """The contents, without a copy."""
        return body_of(self.header, self.data, self.position)


@dataclass(frozen=True, slots=True)
class Stop:
    """The first place where no sound record follows the one before."""

    position: int
    """Of the segment, among those that were scanned."""
    offset: int
    reason: str


class SegmentReader:
    """Reads records of one segment through a window."""

    def __init__(self, files: Files, segment: Segment, salted: int) -> None:
        self._files = files
        self._segment = segment
        self._salted = salted
        self._data = b""
        self._base = 0

    def header_at(self, offset: int) -> RecordHeader | None:
        """The record header at ``offset``, or None if there is no sound one."""
        position = self._reach(offset, RECORD_HEADER_BYTES)
        return self._decode(self._data, position)

    def record_at(self, offset: int, header: RecordHeader) -> Record | None:
        """The record that ``header`` begins, or None if its body is not sound."""
        position = self._reach(offset, header.num_bytes)
        if not is_body_sound(header, self._data, position):
            return None
        return Record(header, self._segment.number, offset, self._data, position)

    def headers_from(self, offset: int) -> Iterator[tuple[int, RecordHeader]]:
        """Every sound record header from ``offset`` on, wherever it stands."""
        while True:
            data = self._read(_WINDOW_BYTES, offset)
            found = data.find(MAGIC)
            while found >= 0:
                header = self._decode(data, found)
                if header is not None and found % _ALIGNMENT == 0:
                    yield offset + found, header
                found = data.find(MAGIC, found + 1)
            if len(data) < _WINDOW_BYTES:
                return
            offset += _WINDOW_BYTES - RECORD_HEADER_BYTES

    def is_blank_from(self, offset: int) -> bool:
        """Whether only zeros follow."""
        while data := self._read(len(_BLANK), offset):
            if data != _BLANK[: len(data)]:
                return False
            offset += len(data)
        return True

    def _decode(self, data: bytes, position: int) -> RecordHeader | None:
        """The header there, unless it is left from another life of the file."""
        header = decode_record_header(self._salted, data, position)
        return None if header is None or header.sequence < self._segment.oldest else header

    def _reach(self, offset: int, size: int) -> int:
        """Where ``offset`` is in the window; ``size`` bytes follow if the file has them."""
        position = offset - self._base
        if position < 0 or position + size > len(self._data):
            self._data = self._read(max(size, _WINDOW_BYTES), offset)
            self._base, position = offset, 0
        return position

    def _read(self, size: int, offset: int) -> bytes:
        try:
            return self._files.pread(self._segment.descriptor, size, offset)
        except OSError as error:
            raise disk_error(self._segment.path, error) from None


class Scan:
    """One pass over the segments of a log: iterate first, then :meth:`check`."""

    def __init__(self, files: Files, segments: Sequence[Segment], salt: bytes) -> None:
        """``segments`` are open, in order and of one log; their tails are set on the way."""
        self.segments = segments
        self.stop: Stop | None = None
        """Where the scan ended, unless that was the seal of the last segment."""
        self.floor = 1
        """Number of the first segment that is needed, as the log says."""
        self.next_sequence = 1 if segments[0].number == 1 else 0
        """Sequence that the next record would have; 0: any, for what came before was deleted."""
        self._durable = 0
        """Last sequence that a record says was durable."""
        self._first_sequences: list[int] = []
        """Of the segments in which a record was found."""
        self._is_blank: dict[int, bool] = {}
        self._readers = [SegmentReader(files, each, salt_seed(salt)) for each in segments]

    # --- the pass ---------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Record]:
        """Sound records in order up to :attr:`stop`, without seals and floors."""
        seal: SealReason | None = None
        for position in range(len(self.segments)):
            seal = yield from self._records_of(position)
            if seal is None:
                return
        if seal is SealReason.FULL:
            raise self._damaged_missing(self.segments[-1].number + 1)

    def _records_of(self, position: int) -> Generator[Record, None, SealReason | None]:
        segment, reader = self.segments[position], self._readers[position]
        while True:
            offset = segment.tail
            header = reader.header_at(offset)
            record = None if header is None else self._next_record(reader, offset, header)
            if header is None or record is None:
                self.stop = Stop(position, offset, self._reason(header))
                return None
            segment.tail += header.num_bytes
            self._durable = header.durable
            if offset == SEGMENT_HEADER_BYTES:
                self._first_sequences.append(header.sequence)
            if header.kind in _HISTORY:
                self.next_sequence = header.sequence + 1
                yield record
            elif header.kind == Kind.SEAL:
                return SealReason(decode_number(record.body))
            elif header.kind == Kind.FLOOR:
                self.next_sequence = header.sequence + 1
                self.floor = decode_number(record.body)
            else:
                raise DamagedError(segment.path, offset, f"record of unknown kind {header.kind}")

    def _next_record(
        self, reader: SegmentReader, offset: int, header: RecordHeader
    ) -> Record | None:
        if self.next_sequence and header.sequence != self.next_sequence:
            return None
        return reader.record_at(offset, header)

    def _reason(self, header: RecordHeader | None) -> str:
        if header is None:
            return "no record begins here"
        if self.next_sequence and header.sequence != self.next_sequence:
            return f"record {header.sequence} follows record {self.next_sequence - 1}"
        return f"the contents of record {header.sequence} do not match their checksum"

    # --- the verdict ------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise :class:`DamagedError` unless the scan ended at the end or at a torn tail."""
        if self.stop is not None:
            self._check_stop(self.stop)
        if self.segments[0].number > self.floor:
            raise self._damaged_missing(self.segments[0].number - 1)

    def _check_stop(self, stop: Stop) -> None:
        segment = self.segments[stop.position]
        if not self.next_sequence and self._is_unused(stop.position):
            raise self._damaged_missing(segment.number - 1)
        voucher = self._voucher(stop)
        if not self.next_sequence or voucher is not None:
            proof = f" (record {voucher} was made when this was durable)" if voucher else ""
            raise DamagedError(segment.path, stop.offset, stop.reason + proof)
        if segment.size < segment.capacity:
            cause = f"the file should have {segment.capacity} bytes and has {segment.size}"
            raise DamagedError(segment.path, stop.offset, cause)

    def _voucher(self, stop: Stop) -> int | None:
        """A record behind the stop that was made when the record missing there was durable."""
        for position in range(stop.position, len(self.segments)):
            if not self.is_blank(position):
                tail = self.segments[position].tail
                for _, header in self._readers[position].headers_from(tail):
                    if header.durable >= self.next_sequence:
                        return header.sequence
        return None

    def unvouched(self) -> Iterator[tuple[Segment, int]]:
        """Segments, each with the offset from where on nothing says that it was durable.

        It may be in the page cache alone: after a failed sync the system takes it for written.
        """
        position = max(bisect.bisect_right(self._first_sequences, self._durable) - 1, 0)
        segment, reader = self.segments[position], self._readers[position]
        offset = SEGMENT_HEADER_BYTES
        while offset < segment.tail:
            header = reader.header_at(offset)
            if header is None or header.sequence > self._durable:
                break
            offset += header.num_bytes
        yield segment, offset
        for segment in self.segments[position + 1 :]:
            yield segment, 0

    def is_blank(self, position: int) -> bool:
        """Whether nothing was ever written behind the tail of a segment."""
        if position not in self._is_blank:
            tail = self.segments[position].tail
            self._is_blank[position] = self._readers[position].is_blank_from(tail)
        return self._is_blank[position]

    def _is_unused(self, position: int) -> bool:
        """Whether a segment has no record of its own, not even behind a damaged one."""
        tail = self.segments[position].tail
        return next(self._readers[position].headers_from(tail), None) is None

    def _damaged_missing(self, number: int) -> DamagedError:
        path = segment_path(self.segments[0].path.parent, number)
        return DamagedError(path, 0, "the file is missing")
