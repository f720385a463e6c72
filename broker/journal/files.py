"""What the log asks of a disk: a narrow protocol, and the operating system behind it.

Tests put a disk in its place that forgets what was not synced, fills up or fails at a chosen
operation (``tests/fake_disk.py``).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from common.codec import Buffer
from common.files import fsync_directory

FULL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What an operating system says when there is no more room: disk, quota, size limit."""

_MAX_BUFFERS = 1024
_ZEROS = bytes(1 << 20)


class Files(Protocol):
    """Files by descriptor; every method raises ``OSError``."""

    def make_directory(self, path: Path) -> None:
        """Make ``path`` and its parents so that they survive a crash; nothing if it exists."""
        ...

    def names(self, directory: Path) -> list[str]:
        """Names in ``directory``."""
        ...

    def lock(self, path: Path) -> int:
        """Descriptor of ``path``, made if need be; ``BlockingIOError`` if another holds it."""
        ...

    def open(self, path: Path) -> int:
        """Descriptor of an existing file."""
        ...

    def create(self, path: Path) -> int:
        """Descriptor of an empty file; ``FileExistsError`` if there is one."""
        ...

    def close(self, descriptor: int) -> None:
        """Give a descriptor back, and its lock."""
        ...

    def size(self, descriptor: int) -> int:
        """Bytes in the file."""
        ...

    def allocate(self, descriptor: int, size: int) -> None:
        """Grow the file to ``size`` with zeros, so that writing there cannot run out of space."""
        ...

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut the file to ``size``."""
        ...

    def pwritev(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write at ``offset``; returns the bytes written, possibly fewer than were given."""
        ...

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        """Read at ``offset``; fewer bytes at the end of the file."""
        ...

    def fdatasync(self, descriptor: int) -> None:
        """Return when contents and size of the file survive a crash of the system."""
        ...

    def fsync_directory(self, path: Path) -> None:
        """Return when the names in ``path`` survive a crash of the system."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name; it replaces a file of that name."""
        ...

    def unlink(self, path: Path) -> None:
        """Delete a file."""
        ...


class OsFiles:
    """The operating system's files."""

    def __init__(self, *, read_only: bool = False) -> None:
        """``read_only`` opens files that nobody may write to."""
        self._mode = os.O_RDONLY if read_only else os.O_RDWR

    def make_directory(self, path: Path) -> None:
        """See :class:`Files`."""
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            fsync_directory(folder.parent)

    def names(self, directory: Path) -> list[str]:
        """See :class:`Files`."""
        return os.listdir(directory)

    def lock(self, path: Path) -> int:
        """See :class:`Files`; the lock ends with the process, however it ends."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def open(self, path: Path) -> int:
        """See :class:`Files`."""
        return os.open(path, self._mode | os.O_CLOEXEC)

    def create(self, path: Path) -> int:
        """See :class:`Files`."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def close(self, descriptor: int) -> None:
        """See :class:`Files`."""
        os.close(descriptor)

    def size(self, descriptor: int) -> int:
        """See :class:`Files`."""
        return os.fstat(descriptor).st_size

    def allocate(self, descriptor: int, size: int) -> None:
        """See :class:`Files`; writes zeros where the file system cannot allocate."""
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            self._write_zeros(descriptor, size)

    def truncate(self, descriptor: int, size: int) -> None:
        """See :class:`Files`."""
        os.ftruncate(descriptor, size)

    def pwritev(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
        """See :class:`Files`; one call of the system takes at most 1024 buffers."""
        return os.pwritev(descriptor, buffers[:_MAX_BUFFERS], offset)

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        """See :class:`Files`."""
        return os.pread(descriptor, size, offset)

    def fdatasync(self, descriptor: int) -> None:
        """See :class:`Files`."""
        os.fdatasync(descriptor)

    def fsync_directory(self, path: Path) -> None:
        """See :class:`Files`."""
        fsync_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        """See :class:`Files`."""
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        """See :class:`Files`."""
        os.unlink(path)

    @staticmethod
    def _write_zeros(descriptor: int, size: int) -> None:
        offset = os.fstat(descriptor).st_size
        while offset < size:
            offset += os.pwrite(descriptor, _ZEROS[: size - offset], offset)
