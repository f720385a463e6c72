"""Saves what is sound in a damaged journal into another directory, and says what is lost.

The ledger is a fold over events in order, so events behind a lost one are not applied: groups go
back to what they were before it, unless a later snapshot holds all of it. Rollouts whose arrays are
lost are sampled again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from broker.journal.files import Files, OsFiles
from broker.journal.history import History
from broker.journal.inspection import decode
from broker.journal.log import Log
from broker.journal.records import (
    FORMAT_VERSION,
    KEY_BYTES,
    SEGMENT_HEADER_BYTES,
    Key,
    Kind,
    RecordHeader,
    SegmentHeader,
    decode_key,
    decode_segment_header,
    salt_seed,
)
from broker.journal.recovery import lock_directory
from broker.journal.rescue import Rescue, ask_again, note_missing_events, resample
from broker.journal.scan import Record, SegmentReader
from broker.journal.segment_file import Segment, disk_error, segment_number
from broker.journal.snapshot_writer import SnapshotWriter
from broker.ledger import Ledger
from broker.ledger_state import LedgerRules
from common.errors import JournalError

_SEGMENT_BYTES = 64 << 20
_WRITE_EVERY = 64


class _Found(NamedTuple):
    """A sound record, somewhere."""

    header: RecordHeader
    reader: SegmentReader
    path: Path
    offset: int

    def read(self) -> Record:
        record = self.reader.record_at(self.offset, self.header)
        if record is None:
            raise JournalError(f"journal {self.path}: changed while it was read (try again)")
        return record


def salvage(directory: Path, out: Path) -> Rescue:
    """Write a repaired copy of the journal in ``directory`` to ``out``, which must not exist.

    Raises :class:`JournalError` if nothing can be told from noise, or the disk fails.
    """
    if out.exists():
        raise JournalError(f"--into {out}: exists already (name a directory that does not)")
    files = OsFiles(read_only=True)
    try:
        lock = lock_directory(OsFiles(), directory)
        try:
            return _salvage(files, directory, out)
        finally:
            files.close(lock)
    except OSError as error:
        raise disk_error(directory, error) from None


def _salvage(files: Files, directory: Path, out: Path) -> Rescue:
    rescue = Rescue()
    segments, header = _open_segments(files, directory, rescue)
    salted = salt_seed(header.salt)
    found = sorted(
        (each for segment in segments for each in _sound_records(files, segment, salted)),
        key=lambda each: each.header.sequence,
    )
    _note_missing_records(found, rescue)
    history, payloads = History(), dict[Key, _Found]()
    for each in found:
        _collect(each, history, payloads)
    ledger = Ledger.replay(LedgerRules(), history.state, history.events)
    note_missing_events(history, rescue)
    num_repairs = resample(ledger, payloads, rescue) + ask_again(ledger, payloads, rescue)
    rescue.next_event = history.next_event + num_repairs
    _write(out, header.owner, ledger, payloads, rescue)
    for segment in segments:
        files.close(segment.descriptor)
    return rescue


# --- reading --------------------------------------------------------------------------------------


def _open_segments(
    files: Files, directory: Path, rescue: Rescue
) -> tuple[list[Segment], SegmentHeader]:
    """All segment files, and a header that is sound: its salt tells records from noise."""
    segments, sound = [], list[SegmentHeader]()
    for name in sorted(files.names(directory)):
        number = segment_number(name)
        if number is None:
            continue
        path = directory / name
        descriptor = files.open(path)
        header = decode_segment_header(files.pread(descriptor, SEGMENT_HEADER_BYTES, 0))
        if header is None:
            rescue.losses.append(f"{path}: the header of the segment")
        else:
            sound.append(header)
        size = files.size(descriptor)
        oldest = 0 if header is None else header.oldest
        segments.append(Segment(number, path, descriptor, size, size, oldest))
    return segments, _common_header(sound, directory)


def _common_header(sound: Sequence[SegmentHeader], directory: Path) -> SegmentHeader:
    """One of the sound headers; they agree in what is asked of them."""
    if not sound:
        raise JournalError(
            f"journal {directory}: no segment has a sound header, so that records cannot be told "
            "from noise (restore one of the files)"
        )
    if sound[0].format != FORMAT_VERSION:
        raise JournalError(
            f"journal {directory}: has format {sound[0].format}, this program reads "
            f"{FORMAT_VERSION} (use the headrace version that wrote it)"
        )
    return sound[0]


def _sound_records(files: Files, segment: Segment, salted: int) -> Iterator[_Found]:
    """Every sound record of a segment, also behind damage.

    Where the segment's own records end, older ones may follow that the file held before.
    """
    reader, offset = SegmentReader(files, segment, salted), SEGMENT_HEADER_BYTES
    newest = 0
    while True:
        header = reader.header_at(offset)
        if header is not None and header.sequence < newest:
            return
        if header is not None and reader.record_at(offset, header) is not None:
            yield _Found(header, reader, segment.path, offset)
            offset, newest = offset + header.num_bytes, header.sequence
        else:
            found = next(reader.headers_from(offset + 8), None)
            if found is None:
                return
            offset = found[0]


def _collect(found: _Found, history: History, payloads: dict[Key, _Found]) -> None:
    if found.header.kind in (Kind.FLOOR, Kind.SEAL):
        return
    record = found.read()
    if found.header.kind == Kind.PUT:
        payloads[decode_key(record.body)] = found
        return
    try:
        entry = decode(record)
    except msgspec.DecodeError:
        return  # as if it were not there: the next events do not follow
    if history.add(entry):
        for key in [key for key in payloads if key[0] in entry.dropped]:
            del payloads[key]


# --- what is lost ---------------------------------------------------------------------------------


def _note_missing_records(found: Sequence[_Found], rescue: Rescue) -> None:
    last: _Found | None = None
    for each in found:
        if each.header.kind == Kind.SEAL:
            continue
        expected = each.header.sequence if last is None else last.header.sequence + 1
        if last is not None and each.header.sequence > expected:
            end = last.offset + last.header.num_bytes
            rescue.losses.append(
                f"{last.path}: records {expected} to {each.header.sequence - 1}, "
                f"at or after byte {end}"
            )
        last = each


# --- writing --------------------------------------------------------------------------------------


def _write(
    out: Path, owner: str, ledger: Ledger, payloads: dict[Key, _Found], rescue: Rescue
) -> None:
    log = Log(out, owner, segment_bytes=_SEGMENT_BYTES, max_bytes=0, files=OsFiles())
    try:
        needed = [key for key in payloads if key[0] in ledger.groups]
        for number, key in enumerate(needed, 1):
            log.put(key, [payloads[key].read().body[KEY_BYTES:]])
            if number % _WRITE_EVERY == 0:
                log.write()
        snapshots = SnapshotWriter(log)
        snapshots.begin(rescue.next_event, ledger.state)
        while snapshots.under_way is not None:
            snapshots.go_on()
            log.write()
        log.write()
    finally:
        log.close()
    rescue.num_groups, rescue.num_payloads = len(ledger.groups), len(needed)
