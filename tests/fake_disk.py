"""A disk in memory that forgets, fills up and fails as real ones do; deterministic.

It keeps three things apart: what the processes see (the page cache), what :meth:`FakeDisk.crash`
must keep (synced data, synced names), and what a crash may keep, lose or tear (the rest). Every
operation that changes something has a number, at which a fault can be planned.
"""

from __future__ import annotations

import copy
import errno
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from common.codec import Buffer

SECTOR_BYTES = 512


class Killed(BaseException):
    """The process ended here: no handler of its own may run on."""


@dataclass(frozen=True)
class Kill:
    """End the process at an operation; a write gets this share of its bytes into the page cache."""

    share: float = 0.0


@dataclass(frozen=True)
class Fail:
    """Refuse an operation with this ``errno``."""

    code: int


@dataclass(frozen=True)
class Short:
    """Write only this many bytes."""

    num_bytes: int


Fault = Kill | Fail | Short


@dataclass(frozen=True)
class _Write:
    offset: int
    data: bytes

    def apply(self, content: bytearray) -> None:
        _grow(content, self.offset + len(self.data))
        content[self.offset : self.offset + len(self.data)] = self.data


@dataclass(frozen=True)
class _Resize:
    size: int

    def apply(self, content: bytearray) -> None:
        del content[self.size :]
        _grow(content, self.size)


@dataclass
class _File:
    content: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)
    unsynced: list[_Write | _Resize] = field(default_factory=list)

    def do(self, change: _Write | _Resize) -> None:
        change.apply(self.content)
        self.unsynced.append(change)

    def sync(self) -> None:
        for change in self.unsynced:
            change.apply(self.synced)
        self.unsynced.clear()

    def crash(self, random: Random) -> None:
        """Each change since the last sync was kept, lost or, if a write, torn."""
        for change in self.unsynced:
            survivors = _survivors(change, random)
            for survivor in survivors:
                survivor.apply(self.synced)
        self.unsynced.clear()
        self.content = bytearray(self.synced)


def _survivors(change: _Write | _Resize, random: Random) -> list[_Write | _Resize]:
    fate = random.choice(("kept", "lost", "prefix", "sectors"))
    if fate == "lost":
        return []
    if fate == "kept" or isinstance(change, _Resize):
        return [change]
    if fate == "prefix":
        return [_Write(change.offset, change.data[: random.randrange(len(change.data) + 1)])]
    return [sector for sector in _sectors(change) if random.random() < 0.5]


def _sectors(write: _Write) -> list[_Write]:
    """``write`` cut where sectors of the disk begin."""
    end = write.offset + len(write.data)
    starts = [write.offset, *range(_next_sector(write.offset), end, SECTOR_BYTES), end]
    return [
        _Write(start, write.data[start - write.offset : stop - write.offset])
        for start, stop in itertools.pairwise(starts)
    ]


def _next_sector(offset: int) -> int:
    return (offset // SECTOR_BYTES + 1) * SECTOR_BYTES


def _grow(content: bytearray, size: int) -> None:
    content.extend(bytes(max(size - len(content), 0)))


@dataclass
class FakeDisk:
    """Implements ``broker.journal.files.Files``; ``capacity`` bounds the bytes of all files."""

    capacity: int | None = None
    faults: dict[int, Fault] = field(default_factory=dict)
    """What happens at which numbered operation; see :attr:`num_operations`."""
    failing: dict[str, int] = field(default_factory=dict)
    """``errno`` by operation name (``"fdatasync"``): it fails whenever it is called."""
    num_operations: int = 0
    history: list[str] = field(default_factory=list)
    """Name of each numbered operation."""

    def __post_init__(self) -> None:
        self._names: dict[Path, _File] = {}
        self._synced_names: dict[Path, _File] = {}
        self._directories: set[Path] = set()
        self._descriptors: dict[int, tuple[Path, _File]] = {}
        self._locks: set[Path] = set()
        self._next_descriptor = 3
        self._is_killed = False

    # --- what happens to the machine --------------------------------------------------------------

    def kill(self) -> None:
        """The process is gone (kill -9); the page cache stays, descriptors and locks do not."""
        self._descriptors.clear()
        self._locks.clear()
        self.faults.clear()
        self._is_killed = False

    def crash(self, random: Random) -> None:
        """The system is gone: what was not synced is kept, lost or torn, each change by itself."""
        self.kill()
        for file in [*self._synced_names.values(), *self._names.values()]:
            file.crash(random)
        self._names = self._crashed_names(random)
        self._synced_names = dict(self._names)

    def _crashed_names(self, random: Random) -> dict[Path, _File]:
        survivors: dict[Path, _File] = {}
        for path in sorted({*self._names, *self._synced_names}):
            before, after = self._synced_names.get(path), self._names.get(path)
            file = after if before is after or random.random() < 0.5 else before
            if file is not None:
                survivors[path] = file
        return survivors

    def copy(self) -> FakeDisk:
        """The same disk once more, to try several ends from one state."""
        return copy.deepcopy(self)

    # --- what tests see and spoil -----------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes of all files."""
        return sum(len(file.content) for file in self._names.values())

    def files(self) -> list[Path]:
        """All files, sorted."""
        return sorted(self._names)

    def read(self, path: Path) -> bytes:
        """Contents of a file as a process would see them."""
        return bytes(self._names[path].content)

    def replace(self, path: Path, data: bytes) -> None:
        """Give a file other contents, durable at once: damage, not a write."""
        file = self._names.setdefault(path, _File())
        file.content, file.synced = bytearray(data), bytearray(data)
        file.unsynced.clear()
        self._synced_names[path] = file

    def remove(self, path: Path) -> None:
        """Lose a file: damage, not an unlink."""
        del self._names[path]
        self._synced_names.pop(path, None)

    # --- Files ------------------------------------------------------------------------------------

    def make_directory(self, path: Path) -> None:
        self._count("make_directory")
        self._directories.update((path, *path.parents))

    def names(self, directory: Path) -> list[str]:
        if directory not in self._directories:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))
        return [path.name for path in self._names if path.parent == directory]

    def lock(self, path: Path) -> int:
        if path in self._locks:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), str(path))
        file = self._names.setdefault(path, _File())
        self._locks.add(path)
        return self._descriptor(path, file)

    def open(self, path: Path) -> int:
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return self._descriptor(path, self._names[path])

    def create(self, path: Path) -> int:
        self._count("create")
        if path in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self._names[path] = _File()
        return self._descriptor(path, self._names[path])

    def close(self, descriptor: int) -> None:
        path, _ = self._descriptors.pop(descriptor)
        self._locks.discard(path)

    def size(self, descriptor: int) -> int:
        return len(self._file(descriptor).content)

    def allocate(self, descriptor: int, size: int) -> None:
        self._count("allocate")
        file = self._file(descriptor)
        if size > len(file.content):
            if size - len(file.content) > self._free():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file.do(_Resize(size))

    def truncate(self, descriptor: int, size: int) -> None:
        self._count("truncate")
        self._file(descriptor).do(_Resize(size))

    def pwritev(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
        data = b"".join(buffers)
        fault = self._count("pwritev", data_bytes=len(data))
        file = self._file(descriptor)
        if isinstance(fault, Kill):
            data = data[: int(fault.share * len(data))]
        elif isinstance(fault, Short):
            data = data[: fault.num_bytes]
        room = max(len(file.content) - offset, 0) + self._free()
        if room < len(data):
            if not room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = data[:room]
        if data:
            file.do(_Write(offset, data))
        if isinstance(fault, Kill):
            self._end()
        return len(data)

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        self._check_alive()
        return bytes(self._file(descriptor).content[offset : offset + size])

    def fdatasync(self, descriptor: int) -> None:
        file = self._file(descriptor)
        try:
            self._count("fdatasync")
        except OSError:
            file.unsynced.clear()  # as Linux does: the pages count as clean, a retry would lie
            raise
        file.sync()

    def fsync_directory(self, path: Path) -> None:
        self._count("fsync_directory")
        below = {name: file for name, file in self._names.items() if name.parent == path}
        for name in [name for name in self._synced_names if name.parent == path]:
            del self._synced_names[name]
        self._synced_names.update(below)

    def rename(self, source: Path, target: Path) -> None:
        self._count("rename")
        if source not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
        self._names[target] = self._names.pop(source)

    def unlink(self, path: Path) -> None:
        self._count("unlink")
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        del self._names[path]

    # --- inside -----------------------------------------------------------------------------------

    def _descriptor(self, path: Path, file: _File) -> int:
        self._check_alive()
        self._next_descriptor += 1
        self._descriptors[self._next_descriptor] = (path, file)
        return self._next_descriptor

    def _file(self, descriptor: int) -> _File:
        if descriptor not in self._descriptors:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._descriptors[descriptor][1]

    def _free(self) -> int:
        return 1 << 62 if self.capacity is None else max(self.capacity - self.used, 0)

    def _count(self, operation: str, *, data_bytes: int = 0) -> Fault | None:
        """Number this operation and let its fault happen; a write's own faults are returned."""
        self._check_alive()
        self.num_operations += 1
        self.history.append(operation)
        fault = self.faults.get(self.num_operations)
        code = self.failing.get(operation)
        if isinstance(fault, Fail):
            code = fault.code
        if code is not None:
            raise OSError(code, os.strerror(code))
        if isinstance(fault, Kill) and not data_bytes:
            self._end()
        return fault

    def _end(self) -> None:
        self._is_killed = True
        raise Killed

    def _check_alive(self) -> None:
        if self._is_killed:
            raise Killed
