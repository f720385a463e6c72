"""Reads a journal that nobody has open, without changing anything: to check it and to print it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from broker.events import AnyEvent
from broker.groups import GroupRecord
from broker.journal.event_turns import unpack_turn
from broker.journal.files import Files, OsFiles
from broker.journal.index import Index
from broker.journal.payloads import is_reference, rollout_of, unpack_header, unpack_reference
from broker.journal.records import (
    KEY_BYTES,
    Key,
    Kind,
    Part,
    decode_drops,
    decode_key,
    decode_part,
)
from broker.journal.recovery import (
    Contents,
    check_checkpoint,
    check_identity,
    index_record,
    lock_directory,
    open_contents,
)
from broker.journal.scan import DamagedError, Record, Scan
from broker.ledger_state import LedgerState
from broker.snapshots import unpack_first, unpack_groups
from common.errors import JournalError
from common.types import ReferenceHeader, RolloutHeader


@dataclass(slots=True)
class Totals:
    """What a sound journal holds."""

    owner: str = ""
    num_segments: int = 0
    num_bytes: int = 0
    live_bytes: int = 0
    num_records: int = 0
    last_sequence: int = 0
    next_event: int = 0
    num_events: int = 0
    """Events in the files; those that a snapshot replaced may be gone from them."""
    live_groups: int = 0
    live_payloads: int = 0
    end: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One record, decoded; the fields that do not belong to its kind are empty."""

    sequence: int
    first_event: int = 0
    events: list[AnyEvent] = field(default_factory=list)
    dropped: tuple[int, ...] = ()
    snapshot: LedgerState | None = None
    """From its first part: without groups."""
    groups: list[GroupRecord] = field(default_factory=list)
    """From a later part of a snapshot."""
    part: Part | None = None
    is_last: bool = False
    """Whether the snapshot is whole with this part."""
    payload: RolloutHeader | None = None
    payload_bytes: int = 0
    reference: ReferenceHeader | None = None
    """Header of reference log-probabilities of the rollout ``reference_of``."""
    reference_of: Key = (0, 0, 0)
    """Group, index and attempt."""


@contextmanager
def opened(directory: Path) -> Iterator[tuple[Files, Contents]]:
    """The segments in ``directory``, opened for reading while no broker has them.

    Raises :class:`JournalError` if there are none or a broker uses them.
    """
    files = OsFiles(read_only=True)
    contents = open_contents(files, directory)
    if not contents.segments:
        raise JournalError(f"journal {directory}: holds no segments (name a broker/journal folder)")
    lock = _lock(directory)
    try:
        yield files, contents
    finally:
        for segment in contents.segments:
            files.close(segment.descriptor)
        if lock is not None:
            files.close(lock)


def _lock(directory: Path) -> int | None:
    """Keep brokers out; where nothing can be written, none can be there."""
    try:
        return lock_directory(OsFiles(), directory)
    except JournalError:
        if _is_writable(directory):
            raise
        return None


def _is_writable(directory: Path) -> bool:
    return os.access(directory, os.W_OK)


def check(directory: Path) -> Totals:
    """Verify every byte that counts; raises :class:`DamagedError` with file and offset."""
    with opened(directory) as (files, contents):
        totals = Totals()
        scan, index = _scan(files, contents), Index()
        for record in scan:
            index_record(index, record)
            _count(totals, _entry(scan, record))
        scan.check()
        check_checkpoint(index, directory)
        totals.owner = contents.headers[0].owner
        totals.num_segments = len(contents.segments)
        totals.num_bytes = sum(segment.size for segment in contents.segments)
        totals.last_sequence = scan.next_sequence - 1
        totals.live_bytes = index.live_bytes
        totals.live_groups = len(index.groups)
        totals.live_payloads = sum(map(len, index.groups.values()))
        totals.end = _end(scan)
        return totals


def entries(directory: Path) -> Iterator[Entry]:
    """Every record in order; raises :class:`DamagedError` where no more can be read."""
    with opened(directory) as (files, contents):
        scan = _scan(files, contents)
        for record in scan:
            yield _entry(scan, record)
        scan.check()


def _scan(files: Files, contents: Contents) -> Scan:
    check_identity(contents, contents.segments[0].path.parent, None)
    return Scan(files, contents.segments, contents.headers[0].salt)


def _count(totals: Totals, entry: Entry) -> None:
    totals.num_records += 1
    totals.num_events += len(entry.events)
    if entry.events:
        totals.next_event = entry.first_event + len(entry.events)
    elif entry.snapshot is not None:
        totals.next_event = max(totals.next_event, entry.first_event)


def _end(scan: Scan) -> str:
    if scan.stop is None:
        return "closed"
    position = scan.stop.position
    later = range(position + 1, len(scan.segments))
    if all(scan.is_blank(each) for each in (position, *later)):
        return "not closed: its broker was killed"
    path = scan.segments[position].path
    return f"not closed: the next start cuts a torn tail at byte {scan.stop.offset} of {path}"


def _entry(scan: Scan, record: Record) -> Entry:
    try:
        return decode(record)
    except (msgspec.DecodeError, ValueError) as error:
        path = next(each.path for each in scan.segments if each.number == record.segment)
        raise DamagedError(path, record.offset, f"cannot be read: {error}") from None


def decode(record: Record) -> Entry:
    """What a record of the broker's journal says; raises ``msgspec.DecodeError``."""
    sequence, body = record.header.sequence, record.body
    if record.header.kind == Kind.PUT:
        key, contents = decode_key(body), body[KEY_BYTES:]
        if is_reference(key):
            reference, _ = unpack_reference(contents)
            size = len(contents)
            of = rollout_of(key)
            return Entry(sequence, payload_bytes=size, reference=reference, reference_of=of)
        return Entry(sequence, payload=unpack_header(contents), payload_bytes=len(contents))
    if record.header.kind in (Kind.PART, Kind.CHECKPOINT):
        return _decode_part(record)
    dropped, start = decode_drops(body)
    if start == len(body):
        return Entry(sequence, dropped=dropped)
    first, events = unpack_turn(body[start:])
    return Entry(sequence, first, events, dropped)


def _decode_part(record: Record) -> Entry:
    dropped, part, start = decode_part(record.body)
    contents, is_last = record.body[start:], record.header.kind == Kind.CHECKPOINT
    entry = Entry(record.header.sequence, dropped=dropped, part=part, is_last=is_last)
    if part.number:
        return replace(entry, groups=unpack_groups(contents))
    number, state = unpack_first(contents)
    return replace(entry, first_event=number, snapshot=state)
