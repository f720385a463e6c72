"""The segment files of one open log: appending, syncing, going on in the spare, trimming, deleting.

Segments are numbered from 1 without gaps. Records go to the *active* one, the last. Behind it lies
a *spare* (``spare``), which the log goes on in and files that nobody needs go back to.

Three threads may work here at once. One appends, reads, makes spares and releases segments; one
waits for the disk in :meth:`Segments.make_durable`; one does what nobody should have to wait for,
:meth:`Segments.tidy` and :meth:`Spare.prewrite`. What several of them touch is under one lock,
which is never held while the disk works (``log_disk``).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path

from broker.journal.files import Files
from broker.journal.log_disk import LogDisk
from broker.journal.records import SEAL_BYTES
from broker.journal.segment_file import Identity, Segment, segment_path
from broker.journal.spare import Spare
from common.codec import Buffer


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
        self._directory = identity.directory
        self._chain = {segment.number: segment for segment in chain}
        self.active = chain[-1]
        num_bytes = sum(each.size for each in [*chain, *([spare] if spare else [])])
        self.disk = disk = LogDisk(files, num_bytes, max_bytes)
        self.spare = Spare(files, identity, disk, spare)
        self._lock = disk.lock
        self._sync_lock = threading.Lock()
        self._tidy_lock = threading.Lock()
        self._unsynced: dict[Segment, None] = {}
        self._released: list[tuple[int, Segment]] = []
        self._sealed: list[tuple[int, Segment]] = []
        self._written = self._durable = 0

    # --- what a caller may know -------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """Where the files are."""
        return self._directory

    @property
    def num_bytes(self) -> int:
        """Bytes of all files: with the spare and those that wait for deletion or reuse."""
        return self.disk.num_bytes

    @property
    def kept_bytes(self) -> int:
        """The same without those that wait."""
        return self.disk.num_bytes - self.disk.released_bytes

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

    # --- appending --------------------------------------------------------------------------------

    def append(self, buffers: Sequence[Buffer], num_bytes: int, sequence: int) -> tuple[int, int]:
        """Write records that fit into the active segment; returns its number and their offset.

        ``sequence`` is that of the last of them. Raises ``OSError`` with one of ``FULL_ERRORS``, as
        some file systems do even for allocated space; nothing counts as written then.
        """
        segment, offset = self.active, self.active.tail
        self.disk.write(segment, buffers, num_bytes, offset)
        with self._lock:
            self._unsynced[segment] = None
            segment.tail = offset + num_bytes
            self._written = max(self._written, sequence)
        return segment.number, offset

    def advance(self, seal: Sequence[Buffer], sequence: int, need_bytes: int) -> bool:
        """Seal the active segment and go on in the spare; False while there is none to go on in.

        ``sequence`` is that of the next record: once it is durable, so is the seal before it.
        The new active segment has room for ``need_bytes``: the spare grows for a record that is
        larger than a segment.
        """
        spare = self.spare.segment
        if spare is None or not self.spare.grow(need_bytes):
            return False
        with self.spare.lock:  # nothing but records is written to it from here on
            self.spare.finish_segment(spare)
            sealed = self.active
            self.append(seal, SEAL_BYTES, sequence - 1)
            with self._lock:
                self._sealed.append((sequence, sealed))
                self.spare.segment = None
                self._chain[spare.number] = self.active = spare
        return True

    def make_spare(self) -> bool:
        """Have a spare; False if disk or ``max_bytes`` have no room for one."""
        return self.spare.make(self.active.number + 1, self._written + 1)

    # --- the disk ---------------------------------------------------------------------------------

    def make_durable(self) -> None:
        """Return when everything appended before the call survives a crash of the system.

        Raises :class:`JournalError` when the disk fails; it is never asked a second time, because
        the system drops what it could not write and then reports success.
        """
        with self._sync_lock:
            with self._lock:
                self.disk.check()
                target = self._written
                unsynced, self._unsynced = list(self._unsynced), {}
            for segment in unsynced:
                self.disk.fdatasync(segment)
            with self._lock:
                self._durable = max(self._durable, target)

    @property
    def is_untidy(self) -> bool:
        """Whether :meth:`tidy` may find something to do."""
        return self.spare.is_unfinished or bool(self._sealed) or bool(self._released)

    def tidy(self) -> None:
        """Make the spare durable, trim sealed segments, delete or set aside those released.

        As far as what they wait for is durable. Raises :class:`JournalError`.
        """
        with self._tidy_lock:
            self.disk.check()
            self.spare.finish()
            sealed, released = self._take_due()
            self._trim(sealed)
            self.spare.take_in(released)

    def _trim(self, sealed: Sequence[Segment]) -> None:
        """Give back what is empty behind a durable seal."""
        for segment in sealed:
            try:
                self._files.truncate(segment.descriptor, segment.tail)
            except OSError as error:
                raise self.disk.fail(segment.path, error) from None
            with self._lock:
                gained = segment.size - segment.tail
                self.disk.num_bytes -= gained
                segment.size, segment.num_unwritten = segment.tail, 0
                if segment.number not in self._chain:
                    self.disk.released_bytes -= gained

    def release(self, numbers: Sequence[int], sequence: int) -> None:
        """Delete or reuse these segments, the oldest ones, once ``sequence`` is durable.

        Its record says that they are needed no more, so a name that a crash brings back does no
        harm, and the directory need not be synced.
        """
        with self._lock:
            released = [self._chain.pop(number) for number in numbers]
            self._released.extend((sequence, segment) for segment in released)
            self.disk.released_bytes += sum(segment.size for segment in released)

    def _take_due(self) -> tuple[list[Segment], list[Segment]]:
        """Sealed and released segments that may be dealt with, as of one moment.

        A segment is sealed before it is released. Were they taken one after the other, a segment
        could be deleted, or become a spare, and be trimmed the next time.
        """
        with self._lock:
            return _due(self._sealed, self._durable), _due(self._released, self._durable)

    # --- reading and closing ----------------------------------------------------------------------

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Bytes of a segment with records; fewer at its end."""
        segment = self._chain[number]
        try:
            return self._files.pread(segment.descriptor, size, offset)
        except OSError as error:
            raise self.disk.fail(segment.path, error) from None

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
            self.disk.fdatasync(segment)
            self._files.truncate(segment.descriptor, segment.tail)

    def close(self) -> None:
        """Close all files."""
        released = [segment for _, segment in self._released]
        for segment in [*self._chain.values(), *released]:
            self._files.close(segment.descriptor)
        self.spare.close()


def _due(waiting: list[tuple[int, Segment]], durable: int) -> list[Segment]:
    """Takes out of ``waiting`` what waits for no more than ``durable``."""
    due = [segment for sequence, segment in waiting if sequence <= durable]
    waiting[:] = [item for item in waiting if item[0] > durable]
    return due
