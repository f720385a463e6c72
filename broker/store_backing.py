"""The arrays of a store: a log on disk, and the newest of them in memory as they arrived.

``durable`` syncs the log before each promise. ``relaxed`` leaves that to the system, which writes
files in its own time, and not at all those whose groups have ended by then: what was promised
survives the end of the store, however that comes, but not that of the machine. After one, what the
disk holds may have holes, so a relaxed store that finds a log of an earlier boot begins an empty
one; the broker has the lost rollouts sampled again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from broker.journal.files import OsFiles
from broker.journal.log import Log
from broker.journal.payloads import PayloadCache, key_of, pack_payload, unpack_payload
from common.codec import Buffer
from common.config import StoresConfig
from common.errors import JournalError, JournalFullError, RefusedError
from common.files import write_atomically
from common.messages import Promise
from common.payloads.backing import Payload
from common.types import RolloutHeader, RolloutId

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class PageCacheFiles(OsFiles):
    """Files that nobody waits for: written by the system when it likes."""

    def fdatasync(self, descriptor: int) -> None:
        """Nothing was promised."""

    def fsync_directory(self, path: Path) -> None:
        """Nothing was promised."""


class LogBacking:
    """Keeps rollouts in a :class:`Log`, by group."""

    def __init__(self, log: Log, hot_bytes: int, promise: Promise) -> None:
        self.promise = promise
        self._log = log
        self._hot = PayloadCache(hot_bytes)

    @classmethod
    def open(cls, directory: Path, owner: str, config: StoresConfig) -> LogBacking:
        """Open or create the log; raises :class:`JournalError` with file, cause and cure."""
        _prepare(directory, config.acks)
        log = Log(
            directory,
            owner,
            segment_bytes=config.segment_bytes,
            max_bytes=config.max_bytes,
            files=OsFiles() if config.acks == "durable" else PageCacheFiles(),
        )
        return cls(log, config.hot_bytes, config.acks)

    @property
    def num_bytes(self) -> int:
        """Bytes on disk of what has not ended."""
        return self._log.live_bytes

    def add(self, header: RolloutHeader, frames: Sequence[Buffer]) -> None:
        """Keep one rollout; raises :class:`RefusedError` where the disk has no room for it.

        The arrays that came first under a header stay: consumers may have read them.
        """
        key = key_of(header.rollout_id)
        if key in self._log and self.payload(header.rollout_id)[0] == header:
            return
        contents = pack_payload(header, frames)
        if not self._log.has_room(sum(map(len, contents))):
            raise RefusedError("full", f"{self._log.live_bytes} bytes are held, there is no room")
        self._log.put(key, contents)
        self._hot.add(key, header, frames)

    def commit(self) -> None:
        """Write what was added, and wait for the disk where that was promised."""
        try:
            self._log.write()
        except JournalFullError as error:
            raise RefusedError("full", str(error)) from None
        self._log.sync()
        self._log.maintain()

    def payload(self, rollout_id: RolloutId) -> Payload:
        """Header and frames; raises ``KeyError`` for a rollout that is not kept."""
        key = key_of(rollout_id)
        return self._hot.get(key) or unpack_payload(self._log.get(key))

    def group_ids(self) -> Sequence[int]:
        """Groups of which anything is on disk."""
        return tuple(self._log.groups)

    def drop_groups(self, group_ids: Iterable[int]) -> None:
        """Forget these groups; their room on disk comes back as segments empty."""
        gone = list(group_ids)
        self._log.drop(gone)
        self._hot.drop(gone)

    def close(self) -> None:
        """Release the log."""
        self._log.close()


def _prepare(directory: Path, acks: Promise) -> None:
    """Remove a relaxed log that another boot of the machine wrote.

    A file beside the log says that it is relaxed, and since which boot. One that becomes durable is
    made so first.
    """
    boot_id = _BOOT_ID.read_bytes()
    mark = directory.with_name(f"{directory.name}.boot_id")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if mark.exists() and mark.read_bytes() != boot_id:
            shutil.rmtree(directory)
            mark.unlink()
        if acks == "relaxed":
            write_atomically(mark, boot_id)
        elif mark.exists():
            os.sync()
            mark.unlink()
    except OSError as error:
        raise JournalError(
            f"store {directory}: {error.strerror} (check the path and its permissions)"
        ) from None
