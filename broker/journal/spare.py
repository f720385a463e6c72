"""The segment in reserve behind the active one, and the old files that spares are made in.

A spare is allocated in full and durable before its first record is written, so that a full disk is
met when the next spare cannot be made and never in the middle of a record. Files that nobody needs
are not all deleted: a few are kept under an unfinished name and become spares again, which saves
the disk and the system from finding new blocks and pages.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from broker.journal.files import FULL_ERRORS, Files
from broker.journal.log_disk import LogDisk
from broker.journal.segment_file import (
    Identity,
    Segment,
    make_segment,
    remake_segment,
    segment_path,
    unfinished_path,
)

MAX_REUSABLE = 2
"""Files kept for spares to come."""
PREWRITTEN_BYTES = 1 << 20
"""Zeros that one call of :meth:`Spare.prewrite` writes."""
_ZEROS = memoryview(bytes(PREWRITTEN_BYTES))


class Spare:
    """The spare of a log, if it has one; every method may raise :class:`JournalError`."""

    def __init__(
        self, files: Files, identity: Identity, disk: LogDisk, segment: Segment | None
    ) -> None:
        self._files = files
        self._identity = identity
        self._disk = disk
        self._reusable: list[Segment] = []
        self.segment = segment
        self.lock = threading.Lock()
        """Held by whoever writes to the spare, or takes it as the active segment."""

    def make(self, number: int, oldest: int) -> bool:
        """Have a spare of this number; False if disk or ``max_bytes`` have no room for one.

        Every record to come has at least the sequence ``oldest``.
        """
        if self.segment is not None:
            return True
        try:
            spare = self._reuse(number, oldest) or self._make_fresh(number)
        except OSError as error:
            if error.errno in FULL_ERRORS:
                return False
            path = segment_path(self._identity.directory, number)
            raise self._disk.fail(path, error) from None
        with self._disk.lock:
            self.segment = spare
        return spare is not None

    def _make_fresh(self, number: int) -> Segment | None:
        size = self._identity.segment_bytes
        if not self._disk.has_room(size):
            return None
        spare = make_segment(self._files, self._identity, number)
        with self._disk.lock:
            self._disk.num_bytes += size
        return spare

    def _reuse(self, number: int, oldest: int) -> Segment | None:
        """A spare in a file that waits for that; raises ``OSError`` and forgets the file."""
        with self._disk.lock:
            if not self._reusable:
                return None
            old = self._reusable.pop()
            self._disk.released_bytes -= old.size
            self._disk.num_bytes -= old.size
        spare = remake_segment(self._files, self._identity, number, old, oldest)
        with self._disk.lock:
            self._disk.num_bytes += spare.size
        return spare

    def grow(self, need_bytes: int) -> bool:
        """Have room for ``need_bytes`` in the spare; False without one or if the disk is full."""
        spare = self.segment
        if spare is None:
            return False
        more = need_bytes - spare.room
        if more <= 0:
            return True
        return self._grow(spare, more) or (self._drop_reusable() and self._grow(spare, more))

    def _grow(self, spare: Segment, more: int) -> bool:
        if not self._disk.has_room(more):
            return False
        try:
            self._files.allocate(spare.descriptor, spare.size + more)
        except OSError as error:
            if error.errno in FULL_ERRORS:
                return False
            raise self._disk.fail(spare.path, error) from None
        with self._disk.lock:
            spare.size += more
            spare.num_unwritten += more
            self._disk.num_bytes += more
        return True

    # --- before its first record ------------------------------------------------------------------

    @property
    def is_unfinished(self) -> bool:
        """Whether there is a spare that is not durable yet."""
        spare = self.segment
        return spare is not None and not spare.is_durable

    def finish(self) -> None:
        """Make the spare durable, if there is one."""
        with self.lock:
            if self.segment is not None:
                self.finish_segment(self.segment)

    def finish_segment(self, spare: Segment) -> None:
        """The same for those who hold the lock."""
        if not spare.is_durable:
            try:
                spare.finish(self._files)
            except OSError as error:
                raise self._disk.fail(spare.path, error) from None

    def prewrite(self) -> bool:
        """Write zeros into a piece of the spare that was never written; whether more is left.

        The first write to a block that was only allocated changes the map of the file, which has to
        be written, too: a sync waits for a transaction of the file system, and for whatever else is
        part of that.
        """
        with self.lock:
            spare = self.segment
            if spare is None or self._disk.failure is not None or not spare.num_unwritten:
                return False
            with self._disk.lock:  # the spare may be growing
                size = min(PREWRITTEN_BYTES, spare.num_unwritten)
                offset = spare.size - spare.num_unwritten
            try:
                self._disk.write(spare, [_ZEROS[:size]], size, offset)
            except OSError:  # a disk that is full even for allocated space
                return False
            self._disk.fdatasync(spare)  # or the first records would wait for it
            with self._disk.lock:
                spare.num_unwritten -= size
            return spare.num_unwritten > 0

    # --- files that nobody needs ------------------------------------------------------------------

    def take_in(self, segments: Sequence[Segment]) -> None:
        """Delete these files, but for those that later spares will be made in."""
        num_kept = max(MAX_REUSABLE - len(self._reusable), 0)
        fitting = [each for each in segments if each.size <= self._identity.segment_bytes]
        kept = fitting[:num_kept]
        for segment in segments:
            if segment not in kept:
                self._disk.unlink(segment)
        for segment in kept:
            self._set_aside(segment)

    def _set_aside(self, segment: Segment) -> None:
        """Give a file a name under which the next start deletes it.

        It is durable before anything is written there: a file that got its former name back in a
        crash must still be the segment of that name.
        """
        directory = self._identity.directory
        try:
            path = unfinished_path(directory, segment.number)
            self._files.rename(segment.path, path)
            segment.path = path
            self._files.fsync_directory(directory)
        except OSError as error:
            raise self._disk.fail(segment.path, error) from None
        with self._disk.lock:
            self._reusable.append(segment)

    def _drop_reusable(self) -> bool:
        """Give the files that wait for reuse back to the disk; False if there are none."""
        with self._disk.lock:
            dropped, self._reusable = self._reusable, []
        for segment in dropped:
            self._disk.unlink(segment)
        return bool(dropped)

    # --- closing ----------------------------------------------------------------------------------

    def drop(self) -> None:
        """Delete the spare: a closed log keeps no space that it does not use."""
        for segment in self._take_all():
            self._files.close(segment.descriptor)
            with contextlib.suppress(OSError):  # the next start finds and uses or deletes it
                self._files.unlink(segment.path)

    def close(self) -> None:
        """Close all files."""
        for segment in self._take_all():
            self._files.close(segment.descriptor)

    def _take_all(self) -> list[Segment]:
        unused = [*self._reusable, *([] if self.segment is None else [self.segment])]
        self.segment, self._reusable = None, []
        return unused
