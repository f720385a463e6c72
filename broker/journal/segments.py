"""The segment files of one open log: appending, syncing, one spare in reserve, deleting, reusing.

Segments are numbered from 1 without gaps. Records go to the *active* one, the last. Behind it lies
a *spare*: allocated in full and durable before its first record is written, so that a full disk is
met when the next spare cannot be made and never in the middle of a record.

Files that nobody needs are not all deleted: a few are kept under an unfinished name and become
spares again, which saves the disk and the system from finding new blocks and pages.

Three threads may work here at once. One appends, reads, makes spares and releases segments; one
waits for the disk in :meth:`Segments.make_durable`; one does what nobody should have to wait for,
:meth:`Segments.tidy` and :meth:`Segments.prewrite`. What several of them touch is under one lock,
which is never held while the disk works.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path

from broker.journal.files import FULL_ERRORS, Files
from broker.journal.records import SEAL_BYTES
from broker.journal.segment_file import (
    Identity,
    Segment,
    disk_error,
    make_segment,
    remake_segment,
    segment_path,
    unfinished_path,
    write_fully,
)
from common.codec import Buffer
from common.errors import JournalError

MAX_REUSABLE = 2
"""Files kept for spares to come."""
PREWRITTEN_BYTES = 1 << 20
"""Zeros that one call of :meth:`Segments.prewrite` writes."""
_ZEROS = memoryview(bytes(PREWRITTEN_BYTES))


class Segments:
    """The files of an open log."""

    def __init__(
        self,
        files: Files,
        identity: Identity,
        chain: Sequence[Segment],
        spare: Segment | None,
        *,
        max_bytes: int = 0,
    ) -> None:
        """``chain`` is what recovery found, oldest first; the last one takes the next record."""
        self._files = files
        self._identity = identity
        self._max_bytes = max_bytes
        self._chain = {segment.number: segment for segment in chain}
        self.active = chain[-1]
        self.spare = spare
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._tidy_lock = threading.Lock()
        self._spare_lock = threading.Lock()
        self._unsynced: dict[Segment, None] = {}
        self._released: list[tuple[int, Segment]] = []
        self._reusable: list[Segment] = []
        self._sealed: list[tuple[int, Segment]] = []
        self._failure: JournalError | None = None
        self._written = self._durable = self._released_bytes = 0
        self._num_bytes = sum(each.size for each in [*chain, *([spare] if spare else [])])

    # --- what a caller may know -------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """Where the files are."""
        return self._identity.directory

    @property
    def num_bytes(self) -> int:
        """Bytes of all files: with the spare and those that wait for deletion or reuse."""
        return self._num_bytes

    @property
    def kept_bytes(self) -> int:
        """The same without those that wait."""
        return self._num_bytes - self._released_bytes

    @property
    def has_failed(self) -> bool:
        """Whether the disk refused something, so that nothing more may be written."""
        return self._failure is not None

    @property
    def durable(self) -> int:
        """Last sequence that is known to survive a crash of the system."""
        return self._durable

    @property
    def numbers(self) -> list[int]:
        """Numbers of the segments with records, oldest first."""
        return list(self._chain)

    def size_of(self, number: int) -> int:
        """Bytes of one segment with records."""
        return self._chain[number].size

    def start_at(self, sequence: int) -> None:
        """Everything up to ``sequence`` was found and synced by recovery."""
        self._written = self._durable = sequence

    def check(self) -> None:
        """Raise the error that ended this log, if one did."""
        if self._failure is not None:
            raise self._failure

    # --- appending --------------------------------------------------------------------------------

    def append(self, buffers: Sequence[Buffer], num_bytes: int, sequence: int) -> tuple[int, int]:
        """Write records that fit into the active segment; returns its number and their offset.

        ``sequence`` is that of the last of them. Raises ``OSError`` with one of ``FULL_ERRORS``, as
        some file systems do even for allocated space; nothing counts as written then.
        """
        segment, offset = self.active, self.active.tail
        self._write(segment, buffers, num_bytes, offset)
        with self._lock:
            self._unsynced[segment] = None
            segment.tail = offset + num_bytes
            self._written = max(self._written, sequence)
        return segment.number, offset

    def _write(
        self, segment: Segment, buffers: Sequence[Buffer], num_bytes: int, offset: int
    ) -> None:
        try:
            write_fully(self._files, segment.descriptor, buffers, num_bytes, offset)
        except OSError as error:
            if error.errno in FULL_ERRORS:
                raise
            raise self.fail(segment.path, error) from None

    def advance(self, seal: Sequence[Buffer], sequence: int, need_bytes: int) -> bool:
        """Seal the active segment and go on in the spare; False while there is none to go on in.

        ``sequence`` is that of the next record: once it is durable, so is the seal before it.
        The new active segment has room for ``need_bytes``: the spare grows for a record that is
        larger than a segment.
        """
        spare = self.spare
        if spare is None or not self.grow_spare(need_bytes):
            return False
        with self._spare_lock:  # nothing but records is written to it from here on
            self._finish(spare)
            sealed = self.active
            self.append(seal, SEAL_BYTES, sequence - 1)
            with self._lock:
                self._sealed.append((sequence, sealed))
                self.spare = None
                self._chain[spare.number] = self.active = spare
        return True

    def grow_spare(self, need_bytes: int) -> bool:
        """Have room for ``need_bytes`` in the spare; False without one or if the disk is full."""
        spare = self.spare
        if spare is None:
            return False
        more = need_bytes - spare.room
        if more <= 0:
            return True
        return self._grow(spare, more) or (self._drop_reusable() and self._grow(spare, more))

    def _grow(self, spare: Segment, more: int) -> bool:
        if self._max_bytes and self._num_bytes + more > self._max_bytes:
            return False
        try:
            self._files.allocate(spare.descriptor, spare.size + more)
        except OSError as error:
            if error.errno in FULL_ERRORS:
                return False
            raise self.fail(spare.path, error) from None
        with self._lock:
            spare.size += more
            spare.num_unwritten += more
            self._num_bytes += more
        return True

    # --- the spare --------------------------------------------------------------------------------

    def make_spare(self) -> bool:
        """Have a spare; False if disk or ``max_bytes`` have no room for one."""
        if self.spare is not None:
            return True
        number = self.active.number + 1
        try:
            spare = self._reuse(number) or self._make_fresh(number)
        except OSError as error:
            if error.errno in FULL_ERRORS:
                return False
            raise self.fail(self.path_of(number), error) from None
        with self._lock:
            self.spare = spare
        return spare is not None

    def _make_fresh(self, number: int) -> Segment | None:
        size = self._identity.segment_bytes
        if self._max_bytes and self._num_bytes + size > self._max_bytes:
            return None
        spare = make_segment(self._files, self._identity, number)
        with self._lock:
            self._num_bytes += size
        return spare

    def _reuse(self, number: int) -> Segment | None:
        """A spare in a file that waits for that; raises ``OSError`` and forgets the file."""
        with self._lock:
            if not self._reusable:
                return None
            old = self._reusable.pop()
            self._released_bytes -= old.size
            self._num_bytes -= old.size
            oldest = self._written + 1
        spare = remake_segment(self._files, self._identity, number, old, oldest)
        with self._lock:
            self._num_bytes += spare.size
        return spare

    @property
    def has_unfinished_spare(self) -> bool:
        """Whether there is a spare that is not durable yet."""
        spare = self.spare
        return spare is not None and not spare.is_durable

    def finish_spare(self) -> None:
        """Make the spare durable, if there is one."""
        with self._spare_lock:
            if self.spare is not None:
                self._finish(self.spare)

    def _finish(self, spare: Segment) -> None:
        if not spare.is_durable:
            try:
                spare.finish(self._files)
            except OSError as error:
                raise self.fail(spare.path, error) from None

    def prewrite(self) -> bool:
        """Write zeros into a piece of the spare that was never written; whether more is left.

        The first write to a block that was only allocated changes the map of the file, which has to
        be written, too: a sync waits for a transaction of the file system, and for whatever else is
        part of that.
        """
        with self._spare_lock:
            spare = self.spare
            if spare is None or self.has_failed or not spare.num_unwritten:
                return False
            size, offset = min(PREWRITTEN_BYTES, spare.num_unwritten), spare.size
            offset -= spare.num_unwritten
            try:
                self._write(spare, [_ZEROS[:size]], size, offset)
            except OSError:  # a disk that is full even for allocated space
                return False
            self._fdatasync(spare)  # or the first records would wait for it
            with self._lock:
                spare.num_unwritten -= size
            return spare.num_unwritten > 0

    # --- the disk ---------------------------------------------------------------------------------

    def make_durable(self) -> None:
        """Return when everything appended before the call survives a crash of the system.

        Raises :class:`JournalError` when the disk fails; it is never asked a second time, because
        the system drops what it could not write and then reports success.
        """
        with self._sync_lock:
            with self._lock:
                self.check()
                target = self._written
                unsynced, self._unsynced = list(self._unsynced), {}
            for segment in unsynced:
                self._fdatasync(segment)
            with self._lock:
                self._durable = max(self._durable, target)

    @property
    def is_untidy(self) -> bool:
        """Whether :meth:`tidy` may find something to do."""
        return self.has_unfinished_spare or bool(self._sealed) or bool(self._released)

    def tidy(self) -> None:
        """Make the spare durable, trim sealed segments, delete or set aside those released.

        As far as what they wait for is durable. Raises :class:`JournalError`.
        """
        with self._tidy_lock:
            self.check()
            self.finish_spare()
            self._trim()
            self._delete()

    def _fdatasync(self, segment: Segment) -> None:
        try:
            self._files.fdatasync(segment.descriptor)
        except OSError as error:
            raise self.fail(segment.path, error) from None

    def _trim(self) -> None:
        """Give back what is empty behind a durable seal."""
        for segment in self._take_due(self._sealed):
            try:
                self._files.truncate(segment.descriptor, segment.tail)
            except OSError as error:
                raise self.fail(segment.path, error) from None
            with self._lock:
                gained = segment.size - segment.tail
                self._num_bytes -= gained
                segment.size, segment.num_unwritten = segment.tail, 0
                if segment.number not in self._chain:
                    self._released_bytes -= gained

    def release(self, numbers: Sequence[int], sequence: int) -> None:
        """Delete or reuse these segments, the oldest ones, once ``sequence`` is durable.

        Its record says that they are needed no more, so a name that a crash brings back does no
        harm, and the directory need not be synced.
        """
        with self._lock:
            released = [self._chain.pop(number) for number in numbers]
            self._released.extend((sequence, segment) for segment in released)
            self._released_bytes += sum(segment.size for segment in released)

    def _delete(self) -> None:
        """Delete what is due, but for the files that later spares will be made in."""
        due = self._take_due(self._released)
        num_kept = max(MAX_REUSABLE - len(self._reusable), 0)
        fitting = [each for each in due if each.size <= self._identity.segment_bytes]
        kept = fitting[:num_kept]
        for segment in due:
            if segment not in kept:
                self._unlink(segment)
        if kept:
            self._set_aside(kept)

    def _set_aside(self, segments: Sequence[Segment]) -> None:
        """Give files names under which the next start deletes them.

        These are durable before anything is written there: a file that got its former name back
        in a crash must still be the segment of that name.
        """
        for segment in segments:
            try:
                path = unfinished_path(self.directory, segment.number)
                self._files.rename(segment.path, path)
                segment.path = path
                self._files.fsync_directory(self.directory)
            except OSError as error:
                raise self.fail(segment.path, error) from None
            with self._lock:
                self._reusable.append(segment)

    def _drop_reusable(self) -> bool:
        """Give the files that wait for reuse back to the disk; False if there are none."""
        with self._lock:
            dropped, self._reusable = self._reusable, []
        for segment in dropped:
            self._unlink(segment)
        return bool(dropped)

    def _unlink(self, segment: Segment) -> None:
        try:
            self._files.unlink(segment.path)
            self._files.close(segment.descriptor)
        except OSError as error:
            raise self.fail(segment.path, error) from None
        with self._lock:
            self._num_bytes -= segment.size
            self._released_bytes -= segment.size

    def _take_due(self, waiting: list[tuple[int, Segment]]) -> list[Segment]:
        with self._lock:
            due = [segment for sequence, segment in waiting if sequence <= self._durable]
            waiting[:] = [item for item in waiting if item[0] > self._durable]
        return due

    # --- reading and closing ----------------------------------------------------------------------

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Bytes of a segment with records; fewer at its end."""
        segment = self._chain[number]
        try:
            return self._files.pread(segment.descriptor, size, offset)
        except OSError as error:
            raise self.fail(segment.path, error) from None

    def path_of(self, number: int) -> Path:
        """File of a segment."""
        return segment_path(self.directory, number)

    def seal(self, seal: Sequence[Buffer]) -> None:
        """End the active segment for good; everything before is durable already.

        A log without its seal is sound, so a disk that is full even for allocated space is no
        reason to fail.
        """
        segment = self.active
        with contextlib.suppress(OSError):
            self.append(seal, SEAL_BYTES, self._written)
            self._fdatasync(segment)
            self._files.truncate(segment.descriptor, segment.tail)

    def drop_spare(self) -> None:
        """Delete the spare: a closed log keeps no space that it does not use."""
        unused = [*self._reusable, *([] if self.spare is None else [self.spare])]
        self.spare, self._reusable = None, []
        for segment in unused:
            self._files.close(segment.descriptor)
            with contextlib.suppress(OSError):  # the next start finds and uses or deletes it
                self._files.unlink(segment.path)

    def close(self) -> None:
        """Close all files."""
        released = [segment for _, segment in self._released]
        spare = [] if self.spare is None else [self.spare]
        for segment in [*self._chain.values(), *released, *self._reusable, *spare]:
            self._files.close(segment.descriptor)

    def fail(self, path: Path, error: OSError) -> JournalError:
        """Remember that this log has ended, and why."""
        self._failure = disk_error(path, error)
        return self._failure
