"""One segment file: its name, its birth, and what its errors mean."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from broker.journal.files import FULL_ERRORS, Files
from broker.journal.records import (
    SEAL_BYTES,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    encode_segment_header,
)
from common.codec import Buffer
from common.errors import JournalError

_PREFIX, _SUFFIX = "segment-", ".log"
UNFINISHED = ".new"
"""Behind the name of a segment that is not durable yet; the next start deletes it."""


_PATH_ERRORS = (PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError)


def segment_path(directory: Path, number: int) -> Path:
    """File of a segment."""
    return directory / f"{_PREFIX}{number:010d}{_SUFFIX}"


def unfinished_path(directory: Path, number: int) -> Path:
    """The same before the segment is durable."""
    return directory / (segment_path(directory, number).name + UNFINISHED)


def segment_number(name: str) -> int | None:
    """Number of the segment in the file ``name``, or None if it is no segment's name."""
    digits = name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    is_ours = digits.isdecimal() and segment_path(Path(), int(digits)).name == name
    return int(digits) if is_ours else None


@dataclass(eq=False, slots=True)
class Segment:
    """One open segment file."""

    number: int
    path: Path
    descriptor: int
    size: int
    """Bytes of the file; all allocated."""
    capacity: int
    """Size that its header promises; it has less only once it is sealed."""
    oldest: int = 0
    """Older records in it are left from another life of the file."""
    tail: int = SEGMENT_HEADER_BYTES
    """Where the next record goes."""
    is_durable: bool = False
    """Whether header, size and name of the file survive a crash of the system."""
    num_unwritten: int = 0
    """Bytes at its end that were allocated and never written, as far as is known."""

    def finish(self, files: Files) -> None:
        """Make a fresh segment durable and only then give it its name."""
        files.fdatasync(self.descriptor)
        unfinished, self.path = self.path, self.path.with_suffix("")
        files.rename(unfinished, self.path)
        files.fsync_directory(self.path.parent)
        self.is_durable = True

    @property
    def room(self) -> int:
        """Bytes of records that fit, with the seal that comes last still to be written."""
        return self.size - SEAL_BYTES - self.tail


@dataclass(frozen=True, slots=True)
class Identity:
    """What every segment header of a log says."""

    directory: Path
    owner: str
    salt: bytes
    segment_bytes: int


def make_segment(files: Files, identity: Identity, number: int) -> Segment:
    """An unfinished segment without records; leaves nothing behind on ``OSError``."""
    path = unfinished_path(identity.directory, number)
    segment = _begin_segment(files, identity, number, path, files.create(path), 0)
    segment.num_unwritten = segment.size - SEGMENT_HEADER_BYTES
    return segment


def remake_segment(
    files: Files, identity: Identity, number: int, old: Segment, oldest: int
) -> Segment:
    """The same in the file of a segment that nobody needs and that has an unfinished name.

    Blocks and pages that were written before are written again in a fraction of the time. Every
    record to come has at least the sequence ``oldest``, all that the file holds have lower ones.
    """
    path = unfinished_path(identity.directory, number)
    files.rename(old.path, path)
    segment = _begin_segment(files, identity, number, path, old.descriptor, oldest)
    segment.num_unwritten = old.num_unwritten + segment.size - old.size
    return segment


def _begin_segment(
    files: Files, identity: Identity, number: int, path: Path, descriptor: int, oldest: int
) -> Segment:
    size = identity.segment_bytes
    header = SegmentHeader(number, size, identity.salt, identity.owner, oldest)
    try:
        files.allocate(descriptor, size)
        write_fully(files, descriptor, [encode_segment_header(header)], SEGMENT_HEADER_BYTES, 0)
    except OSError:
        files.close(descriptor)
        files.unlink(path)
        raise
    return Segment(number, path, descriptor, size, size, oldest)


def write_fully(
    files: Files, descriptor: int, buffers: Sequence[Buffer], num_bytes: int, offset: int
) -> None:
    """Write all of ``buffers``, ``num_bytes`` together; raises ``OSError``."""
    rest, end = list(buffers), offset + num_bytes
    while offset < end:
        written = files.pwritev(descriptor, rest, offset)
        if not written:
            raise OSError(errno.EIO, "a write wrote nothing")
        offset += written
        rest = _after(rest, written) if offset < end else []


def _after(buffers: Sequence[Buffer], num_bytes: int) -> list[Buffer]:
    """What is left of ``buffers`` behind their first ``num_bytes``."""
    for position, buffer in enumerate(buffers):
        size = memoryview(buffer).nbytes
        if num_bytes < size:
            return [memoryview(buffer).cast("B")[num_bytes:], *buffers[position + 1 :]]
        num_bytes -= size
    return []


def disk_error(path: Path, error: OSError) -> JournalError:
    """The error of an operating system as file, cause and cure."""
    if error.errno in FULL_ERRORS:
        cure = "free some space and start the broker again: nothing acknowledged is lost"
    elif isinstance(error, _PATH_ERRORS):
        cure = "check the path and its permissions, or use another run.directory"
    else:
        cure = "check the disk, then start the broker again: nothing acknowledged is lost"
    return JournalError(f"journal {path}: {error.strerror} ({cure})")
