"""Opens a log: takes its lock, reads all of it, cuts a torn tail, refuses what is damaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from broker.journal.files import Files
from broker.journal.index import Index, Place
from broker.journal.records import (
    FORMAT_VERSION,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Kind,
    SegmentHeader,
    decode_drops,
    decode_key,
    decode_part,
    decode_segment_header,
    looks_like_segment,
)
from broker.journal.scan import DamagedError, Record, Scan
from broker.journal.segment_file import (
    UNFINISHED,
    Identity,
    Segment,
    disk_error,
    make_segment,
    segment_number,
    segment_path,
    write_fully,
)
from common.errors import JournalError

LOCK_NAME = "lock"
_BLANK = bytes(1 << 20)
_PUT = int(Kind.PUT)  # compared once for every record of a log: an enum member costs more


@dataclass(frozen=True, slots=True)
class Contents:
    """A log as it was found on disk: its segments from the first that is needed, open."""

    segments: list[Segment]
    headers: list[SegmentHeader]
    unfinished: list[Path]
    strays: list[Path]
    """Segments before a gap in the numbers."""


@dataclass(slots=True)
class Recovered:
    """A log that can be gone on with."""

    chain: list[Segment]
    spare: Segment | None
    salt: bytes
    index: Index
    last_sequence: int


# --- finding --------------------------------------------------------------------------------------


def lock_directory(files: Files, directory: Path) -> int:
    """Be the only process that has this log open; returns the descriptor to close."""
    try:
        return files.lock(directory / LOCK_NAME)
    except BlockingIOError:
        raise JournalError(
            f"journal {directory}: another broker uses it "
            "(stop that one, or use another run.directory)"
        ) from None
    except OSError as error:
        raise disk_error(directory, error) from None


def open_contents(files: Files, directory: Path) -> Contents:
    """Open the segments in ``directory``, if there are any.

    Raises :class:`JournalError` for a directory with other things in it, :class:`DamagedError` for
    a header that is damaged.
    """
    try:
        names = files.names(directory)
    except OSError as error:
        raise disk_error(directory, error) from None
    numbers = sorted(n for n in map(segment_number, names) if n is not None)
    unfinished = [directory / name for name in names if name.endswith(UNFINISHED)]
    foreign = {*names} - {LOCK_NAME} - {path.name for path in unfinished}
    if foreign and not numbers:
        raise JournalError(
            f"journal {directory}: is not a headrace journal, it holds {min(foreign)!r} "
            "(use another run.directory)"
        )
    first = _first_of_suffix(numbers)
    strays = [segment_path(directory, number) for number in numbers if number < first]
    opened = [
        _open_segment(files, segment_path(directory, number), number)
        for number in numbers
        if number >= first
    ]
    return Contents([s for s, _ in opened], [h for _, h in opened], unfinished, strays)


def _first_of_suffix(numbers: list[int]) -> int:
    """First of the numbers that follow each other without a gap up to the last.

    Segments before a gap are left from a deletion that a crash cut short, or the scan will find
    that the log needs the missing one.
    """
    first = max(numbers, default=0)
    while first - 1 in numbers:
        first -= 1
    return first


def _open_segment(files: Files, path: Path, number: int) -> tuple[Segment, SegmentHeader]:
    try:
        descriptor = files.open(path)
        block = files.pread(descriptor, SEGMENT_HEADER_BYTES, 0)
        size = files.size(descriptor)
    except OSError as error:
        raise disk_error(path, error) from None
    header = decode_segment_header(block)
    if header is None:
        if not looks_like_segment(block):
            raise DamagedError(path, 0, "this is not the start of a headrace journal")
        raise DamagedError(path, 0, "the header does not match its checksum")
    if header.number != number:
        raise DamagedError(path, 0, f"this is segment {header.number} under another name")
    segment = Segment(
        number, path, descriptor, size, header.capacity, header.oldest, is_durable=True
    )
    return segment, header


def check_identity(contents: Contents, directory: Path, owner: str | None) -> None:
    """Raise :class:`JournalError` if the log is in another format or not of ``owner``'s run."""
    for segment, header in zip(contents.segments, contents.headers, strict=True):
        if header.format != FORMAT_VERSION:
            raise JournalError(
                f"journal {segment.path}: has format {header.format}, this program writes "
                f"{FORMAT_VERSION} (use the headrace version that wrote it, or another "
                "run.directory)"
            )
        if owner is not None and header.owner != owner:
            raise JournalError(
                f"journal {directory}: belongs to run {header.owner!r}, not {owner!r} "
                "(set run.id to the former, or use another run.directory)"
            )
        if header.salt != contents.headers[0].salt:
            raise DamagedError(segment.path, 0, "this segment is of another journal of this run")


# --- reading --------------------------------------------------------------------------------------


def index_record(index: Index, record: Record) -> None:
    """Apply one record of a log to ``index``."""
    header = record.header
    place = Place(record.segment, record.offset, header.num_bytes)
    if header.kind == _PUT:
        index.put(decode_key(record.data, record.position + RECORD_HEADER_BYTES), place)
        return
    groups, start = decode_drops(record.body)
    for group in groups:
        index.drop(group)
    if header.kind == Kind.PART:
        index.add_part(decode_part(record.body)[1], place)
    elif header.kind == Kind.CHECKPOINT:
        index.set_checkpoint(decode_part(record.body)[1], place)
    elif start < header.length:
        index.add_turn(place)


def check_checkpoint(index: Index, directory: Path) -> None:
    """Raise :class:`DamagedError` if parts of the last checkpoint are missing."""
    if index.incomplete is not None:
        segment, offset, _ = index.incomplete
        raise DamagedError(
            segment_path(directory, segment), offset, "parts of this checkpoint are missing"
        )
    index.give_up_checkpoint()  # nobody goes on with one that was left unfinished


# --- repairing ------------------------------------------------------------------------------------


def recover(files: Files, identity: Identity) -> Recovered:
    """Make the log in a locked directory ready to be written to, or begin one.

    Raises :class:`JournalError`, and changes nothing on disk, if going on would lose anything.
    """
    contents = open_contents(files, identity.directory)
    try:
        check_identity(contents, identity.directory, identity.owner)
        return (_resume if contents.segments else _begin)(files, identity, contents)
    except BaseException as error:
        for segment in contents.segments:
            files.close(segment.descriptor)
        if isinstance(error, OSError):
            raise disk_error(identity.directory, error) from None
        raise


def _begin(files: Files, identity: Identity, contents: Contents) -> Recovered:
    _delete(files, contents.unfinished)
    first = make_segment(files, identity, 1)
    first.finish(files)
    return Recovered([first], None, identity.salt, Index(), 0)


def _resume(files: Files, identity: Identity, contents: Contents) -> Recovered:
    salt, index = contents.headers[0].salt, Index()
    scan = Scan(files, contents.segments, salt)
    for record in scan:
        index_record(index, record)
    scan.check()
    check_checkpoint(index, identity.directory)
    for segment, offset in scan.unvouched():
        _write_again(files, segment, offset)
    for segment in contents.segments:
        files.fdatasync(segment.descriptor)
    _delete(files, contents.unfinished)
    identity = replace(identity, salt=salt)
    chain, spare = _end_of(files, identity, scan)
    needed = [segment for segment in chain if segment.number >= scan.floor]
    _delete(files, [*contents.strays, *(each.path for each in chain[: -len(needed)])])
    files.fsync_directory(identity.directory)
    for segment in contents.segments:
        if segment is not spare and segment not in needed:
            files.close(segment.descriptor)
    return Recovered(needed, spare, salt, index, scan.next_sequence - 1)


def _end_of(files: Files, identity: Identity, scan: Scan) -> tuple[list[Segment], Segment | None]:
    """The segments that hold records and one that takes the next, and a spare if there is one."""
    segments = list(scan.segments)
    if scan.stop is None:
        return [*segments, _next_segment(files, identity, segments[-1])], None
    number = scan.stop.position + 1
    chain, later = segments[:number], segments[number:]
    blank_next = later[:1] if later and scan.is_blank(number) else []
    for segment in reversed(later[len(blank_next) :]):
        files.unlink(segment.path)
        files.fsync_directory(identity.directory)  # one by one: a crash must leave no gap
    if not scan.is_blank(number - 1):
        _wipe(files, chain[-1])
    return chain, blank_next[0] if blank_next else None


def _write_again(files: Files, segment: Segment, offset: int) -> None:
    """Write what is there once more, so that the next sync is sure to bring it to the disk."""
    while offset < segment.tail:
        size = min(len(_BLANK), segment.tail - offset)
        data = files.pread(segment.descriptor, size, offset)
        write_fully(files, segment.descriptor, [data], size, offset)
        offset += size


def _wipe(files: Files, segment: Segment) -> None:
    """Cut a torn tail: zeros over whatever was written there, which takes no more space."""
    offset = segment.tail
    while offset < segment.size:
        size = min(len(_BLANK), segment.size - offset)
        if files.pread(segment.descriptor, size, offset) != _BLANK[:size]:
            write_fully(files, segment.descriptor, [_BLANK[:size]], size, offset)
        offset += size
    files.fdatasync(segment.descriptor)


def _delete(files: Files, paths: Sequence[Path]) -> None:
    for path in paths:
        files.unlink(path)


def _next_segment(files: Files, identity: Identity, last: Segment) -> Segment:
    segment = make_segment(files, identity, last.number + 1)
    segment.finish(files)
    return segment
