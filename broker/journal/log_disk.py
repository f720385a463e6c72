"""The disk as one open log uses it: how much of it, and whether it has failed; for all threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from broker.journal.files import FULL_ERRORS, Files
from broker.journal.segment_file import Segment, disk_error, write_fully
from common.codec import Buffer
from common.errors import JournalError


class LogDisk:
    """Bytes of the files of a log, the first error that the disk had, and the lock of its threads.

    Whatever fails here raises :class:`JournalError`, and so does :meth:`check` from then on.
    """

    def __init__(self, files: Files, num_bytes: int, max_bytes: int) -> None:
        """``max_bytes`` 0 leaves the bound to the disk."""
        self._files = files
        self._max_bytes = max_bytes
        self.lock = threading.Lock()
        """Over what several threads touch; never held while the disk works."""
        self.num_bytes = num_bytes
        """Bytes of all files: with the spare and those that wait for deletion or reuse."""
        self.released_bytes = 0
        """Bytes of those that wait."""
        self.failure: JournalError | None = None
        """The error that ended this log, if one did."""

    def has_room(self, num_bytes: int) -> bool:
        """Whether the files may grow by ``num_bytes``."""
        return not self._max_bytes or self.num_bytes + num_bytes <= self._max_bytes

    def fail(self, path: Path, error: OSError) -> JournalError:
        """Remember that this log has ended, and why."""
        self.failure = disk_error(path, error)
        return self.failure

    def check(self) -> None:
        """Raise the error that ended this log, if one did."""
        if self.failure is not None:
            raise self.failure

    def write(
        self, segment: Segment, buffers: Sequence[Buffer], num_bytes: int, offset: int
    ) -> None:
        """Write all of ``buffers``; raises ``OSError`` with one of ``FULL_ERRORS``, too."""
        try:
            write_fully(self._files, segment.descriptor, buffers, num_bytes, offset)
        except OSError as error:
            if error.errno in FULL_ERRORS:
                raise
            raise self.fail(segment.path, error) from None

    def fdatasync(self, segment: Segment) -> None:
        """Return when what was written to a segment survives a crash of the system."""
        try:
            self._files.fdatasync(segment.descriptor)
        except OSError as error:
            raise self.fail(segment.path, error) from None

    def unlink(self, segment: Segment) -> None:
        """Delete the file of a released segment."""
        try:
            self._files.unlink(segment.path)
            self._files.close(segment.descriptor)
        except OSError as error:
            raise self.fail(segment.path, error) from None
        with self.lock:
            self.num_bytes -= segment.size
            self.released_bytes -= segment.size
