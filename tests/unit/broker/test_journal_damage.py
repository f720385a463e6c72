"""Damage to a log on disk: every bit and every length, lost and foreign files.

The log of the first tests is one segment of 64 KiB of records. A changed bit leaves the records
before it as they are, so each case is scanned from the record that holds the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import cast

import pytest

from broker.journal.files import Files
from broker.journal.records import (
    FORMAT_VERSION,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    decode_segment_header,
    encode_segment_header,
)
from broker.journal.scan import DamagedError, Scan
from broker.journal.segment_file import Segment, segment_path
from common.errors import JournalError
from tests.fake_disk import FakeDisk
from tests.journal_workload import DIRECTORY, Contents, Workload, contents_of, open_log

NUM_BYTES = 64 << 10
FIRST = segment_path(DIRECTORY, 1)


@dataclass(frozen=True)
class Span:
    """A record of the log: where it is, and what the log holds when it ends before it."""

    offset: int
    end: int
    sequence: int
    is_vouched: bool
    """Whether a later record says that this one was durable."""


class Image:
    """The bytes of one segment, to be spoilt and mended again."""

    def __init__(self, disk: FakeDisk) -> None:
        self.data = bytearray(disk.read(FIRST))
        header = decode_segment_header(bytes(self.data[:SEGMENT_HEADER_BYTES]))
        assert header is not None
        self.header = header

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        return bytes(self.data[offset : offset + size])

    def scan(self, offset: int = SEGMENT_HEADER_BYTES, sequence: int = 1) -> Scan:
        """The scan of this segment from a record on, not yet iterated."""
        segment = Segment(1, FIRST, 0, len(self.data), self.header.capacity, tail=offset)
        scan = Scan(cast("Files", self), [segment], self.header.salt)
        scan.next_sequence = sequence
        return scan

    def spans(self) -> list[Span]:
        found = [(each.offset, each.header) for each in self.scan()]
        vouched = max(header.durable for _, header in found)
        if self.is_sealed:
            vouched = found[-1][1].sequence
        return [
            Span(offset, offset + header.num_bytes, header.sequence, header.sequence <= vouched)
            for offset, header in found
        ]

    @property
    def is_sealed(self) -> bool:
        scan = self.scan()
        for _ in scan:
            pass
        return scan.stop is None


def _image(*, closed: bool) -> Image:
    """A log of 64 KiB, every turn acknowledged; killed, or closed in peace."""
    disk = FakeDisk()
    log = open_log(disk, segment_bytes=SEGMENT_HEADER_BYTES + NUM_BYTES)
    random = Random(5)
    while log._segments.active.room > 6000:
        for index in range(random.randint(0, 3)):
            log.put((log.last_sequence, index, 1), [random.randbytes(random.randint(0, 1500))])
        log.append(random.randbytes(random.randint(1, 300)))
        log.write()
        log.sync()
    if closed:
        log.close()
    disk.kill()
    return Image(disk)


def _loss(image: Image, span: Span) -> int | None:
    """Offset at which the log is refused; None if it is cut there without a word."""
    scan = image.scan(span.offset, span.sequence)
    assert next(iter(scan), None) is None, "a changed record was taken for a sound one"
    try:
        scan.check()
    except DamagedError as error:
        return error.offset
    return None


@pytest.mark.slow
@pytest.mark.parametrize("closed", [True, False])
def test_every_changed_bit_of_a_record_is_refused_by_offset_or_was_never_vouched_for(
    closed: bool,
) -> None:
    image = _image(closed=closed)
    spans = image.spans()
    silent = set()
    for span in spans:
        for position in range(span.offset, span.end):
            for bit in range(8):
                image.data[position] ^= 1 << bit
                offset = _loss(image, span)
                image.data[position] ^= 1 << bit
                if offset is None:
                    silent.add(span.sequence)
                else:
                    assert offset == span.offset
    unvouched = {span.sequence for span in spans if not span.is_vouched}
    assert silent == unvouched
    last_commit = {span.sequence for span in spans[-4:]}
    assert silent == set() if closed else silent and silent <= last_commit


def test_every_changed_bit_of_the_seal_of_a_closed_log_is_refused() -> None:
    image = _image(closed=True)
    last = image.spans()[-1]
    seal = Span(last.end, len(image.data), last.sequence + 1, True)
    for position in range(seal.offset, seal.end):
        for bit in range(8):
            image.data[position] ^= 1 << bit
            assert _loss(image, seal) == seal.offset
            image.data[position] ^= 1 << bit


def test_every_changed_bit_of_a_segment_header_is_refused() -> None:
    disk = FakeDisk()
    open_log(disk)
    disk.kill()
    block = bytearray(disk.read(FIRST)[:SEGMENT_HEADER_BYTES])
    for position in range(SEGMENT_HEADER_BYTES):
        for bit in range(8):
            block[position] ^= 1 << bit
            assert decode_segment_header(bytes(block)) is None
            block[position] ^= 1 << bit
    block[17] ^= 1
    disk.replace(FIRST, bytes(block) + disk.read(FIRST)[SEGMENT_HEADER_BYTES:])
    _assert_damaged(disk, FIRST, 0)


def test_a_changed_bit_behind_the_tail_changes_nothing() -> None:
    disk = FakeDisk()
    log = open_log(disk)
    log.put((1, 2, 3), [b"abc"])
    log.write()
    log.sync()
    tail = log._segments.active.tail
    disk.kill()
    held = disk.read(FIRST)
    for position in {*range(tail, tail + 64), *range(tail, len(held), 997)}:
        data = bytearray(held)
        data[position] ^= 0x10
        disk.replace(FIRST, bytes(data))
        again = open_log(disk)
        assert bytes(again.get((1, 2, 3))) == b"abc"
        again.put((4, 5, 6), [bytes(100)])
        again.write()
        disk.kill()
    assert open_log(disk).last_sequence == 2


# --- torn tails -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_tail_torn_at_any_byte_is_cut_behind_the_last_whole_record() -> None:
    """The blocks are allocated: what was not written reads as zeros."""
    image = _image(closed=False)
    whole = bytes(image.data)
    for span in image.spans():
        image.data[span.end :] = bytes(len(whole) - span.end)
        for cut in range(span.end - 1, span.offset - 1, -1):
            image.data[cut] = 0
            scan = image.scan(span.offset, span.sequence)
            found = list(scan)
            scan.check()
            if any(whole[cut : span.end]):
                assert not found
                assert scan.stop is not None
                assert scan.stop.offset == span.offset
            else:
                assert len(found) == 1, "only padding and zeros are missing"
        image.data[:] = whole


def test_a_tail_torn_in_the_middle_of_a_batch_is_cut_although_sound_records_follow() -> None:
    """A disk may keep the last block of a write and lose the first."""
    disk = FakeDisk()
    log = open_log(disk)
    log.put((1, 0, 0), [b"acknowledged"])
    log.write()
    log.sync()
    start = log._segments.active.tail
    for group in range(2, 6):
        log.put((group, 0, 0), [bytes([group]) * 600])
    log.write()
    disk.kill()
    data = bytearray(disk.read(FIRST))
    data[start : start + 512] = bytes(512)
    disk.replace(FIRST, bytes(data))
    again = open_log(disk)
    assert list(again.groups) == [1]
    assert not any(disk.read(FIRST)[start:]), "later starts do not find the remains"
    again.put((9, 0, 0), [b"goes on"])
    again.write()
    disk.kill()
    assert list(open_log(disk).groups) == [1, 9]


@pytest.mark.parametrize("closed", [True, False])
def test_a_file_cut_short_at_any_byte_is_refused(closed: bool) -> None:
    """A segment has its full size before its first record, until its seal is durable."""
    image = _image(closed=closed)
    whole = bytes(image.data)
    for size in range(SEGMENT_HEADER_BYTES, len(whole)):
        image.data = bytearray(whole[:size])
        scan = image.scan(_start_of_record(image, size), 0)
        scan.next_sequence = 1 << 40  # nothing in the file vouches for what is not there
        assert not list(scan)
        with pytest.raises(DamagedError, match=f"should have {image.header.capacity} bytes"):
            scan.check()
    assert all(decode_segment_header(whole[:size]) is None for size in range(SEGMENT_HEADER_BYTES))


def _start_of_record(image: Image, size: int) -> int:
    return min(size // 8 * 8, len(image.data))


def test_a_record_that_does_not_follow_the_last_one_is_refused_though_it_is_sound() -> None:
    disk = FakeDisk()
    log = open_log(disk)
    ends = []
    for number in range(6):
        log.append(b"turn %d" % number)
        log.write()
        log.sync()
        ends.append(log._segments.active.tail)
    disk.kill()
    data = disk.read(FIRST)
    gone = ends[2] - ends[1]
    disk.replace(FIRST, data[: ends[1]] + data[ends[2] :] + bytes(gone))
    with pytest.raises(DamagedError, match=f"byte {ends[1]}: record 4 follows record 2"):
        open_log(disk)


# --- files ----------------------------------------------------------------------------------------


def _long_log() -> tuple[FakeDisk, Contents]:
    """A log of several segments after an unclean stop, some deleted, all acknowledged."""
    disk = FakeDisk()
    log = open_log(disk)
    work = Workload(Random(3), log)
    work.longest, work.turnover = 6000, 0.1
    for _ in range(80):
        work.turn()
    work.commit()
    disk.kill()
    assert len(_segments(disk)) >= 4
    assert FIRST not in disk.files()
    return disk, work.now


def _segments(disk: FakeDisk) -> list[Path]:
    return [path for path in disk.files() if path.suffix == ".log"]


def _assert_damaged(disk: FakeDisk, path: Path, offset: int | None = None) -> None:
    """The log is refused by file, byte and cure, and left as it is."""
    before = {each: disk.read(each) for each in disk.files() if each.name != "lock"}
    with pytest.raises(DamagedError, match="headrace journal salvage") as refused:
        open_log(disk)
    assert refused.value.path == path
    assert str(path) in str(refused.value)
    if offset is not None:
        assert f"damaged at byte {offset}:" in str(refused.value)
    after = {each: disk.read(each) for each in disk.files() if each.name != "lock"}
    assert after == before


def test_a_lost_segment_is_named_wherever_it_was() -> None:
    disk, contents = _long_log()
    again = open_log(disk.copy())
    assert contents_of(again) == contents
    for path in _segments(disk):
        if path <= again._segments.active.path:  # behind it lies the spare
            spoilt = disk.copy()
            spoilt.remove(path)
            _assert_damaged(spoilt, path)


def test_a_closed_log_without_its_last_file_is_refused() -> None:
    disk, _ = _long_log()
    open_log(disk).close()
    *_, last = _segments(disk)
    disk.remove(last)
    _assert_damaged(disk, last)


def _swapped(disk: FakeDisk) -> Path:
    first, second = _segments(disk)[:2]
    one, other = disk.read(first), disk.read(second)
    disk.replace(first, other)
    disk.replace(second, one)
    return first


def _of_another_log(disk: FakeDisk) -> Path:
    other, _ = _long_log()
    shared = [path for path in _segments(disk) if path in _segments(other)][1]
    disk.replace(shared, other.read(shared))
    return shared


def _emptied(disk: FakeDisk) -> Path:
    path = _segments(disk)[1]
    disk.replace(path, b"")
    return path


def _from_yesterday(disk: FakeDisk) -> Path:
    """The newest records of a segment are gone, as after restoring an old copy of one file."""
    path = _segments(disk)[1]
    data = disk.read(path)
    disk.replace(path, data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    return path


def _notes(disk: FakeDisk) -> Path:
    path = _segments(disk)[0]
    disk.replace(path, b"these are my notes\n" * 4000)
    return path


@pytest.mark.parametrize("spoil", [_swapped, _of_another_log, _emptied, _from_yesterday, _notes])
def test_a_segment_with_the_wrong_contents_is_refused_by_name(
    spoil: Callable[[FakeDisk], Path],
) -> None:
    disk, _ = _long_log()
    _assert_damaged(disk, spoil(disk))


def test_a_log_in_another_format_is_refused_with_both_numbers() -> None:
    disk = FakeDisk()
    open_log(disk)
    disk.kill()
    data = disk.read(FIRST)
    header = decode_segment_header(data[:SEGMENT_HEADER_BYTES])
    assert header is not None
    newer = encode_segment_header(header._replace(format=99))
    disk.replace(FIRST, newer + data[SEGMENT_HEADER_BYTES:])
    with pytest.raises(JournalError, match=f"has format 99, this program writes {FORMAT_VERSION}"):
        open_log(disk)


def test_a_record_inside_a_payload_is_no_record_of_the_log() -> None:
    """Whoever looks for records behind a damaged one must not find those of a journal in it."""
    other = FakeDisk()
    log = open_log(other)
    for _ in range(50):
        log.append(b"turn")
        log.write()
        log.sync()
    stolen = other.read(FIRST)[SEGMENT_HEADER_BYTES : SEGMENT_HEADER_BYTES + 4000]
    disk = FakeDisk()
    log = open_log(disk)
    log.append(b"kept")
    log.write()
    log.sync()
    log.put((1, 1, 1), [stolen])
    start = log._segments.active.tail
    log.write()
    disk.kill()
    data = bytearray(disk.read(FIRST))
    data[start : start + RECORD_HEADER_BYTES] = bytes(RECORD_HEADER_BYTES)
    disk.replace(FIRST, bytes(data))
    again = open_log(disk)
    assert [bytes(turn) for turn in again.turns()] == [b"kept"]
    assert not again.groups
