"""A durable log of keyed records and turns, in bounded disk space. It knows nothing of ledgers.

Keyed records (:meth:`Log.put`) live until their group is dropped. Turns (:meth:`Log.append`) live
until a checkpoint that began later ends (:meth:`Log.add_part`, :meth:`Log.checkpoint`). Everything
is staged first; :meth:`Log.write` hands it to the system, in order, and :meth:`Log.sync`, which
another thread may call meanwhile, makes it durable.

Old segments are let go of by :class:`~broker.journal.compaction.Compaction`.

A full disk shows when no spare segment can be made. From then on :attr:`Log.room` is 0, which asks
the caller to take in no more keyed records, and the active segment keeps room for turns and drops;
they lead to deletions, and so to a spare.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, KeysView, Sequence
from pathlib import Path

from broker.journal.compaction import Compaction
from broker.journal.files import Files
from broker.journal.log_reader import LogReader
from broker.journal.log_writer import LogWriter
from broker.journal.records import (
    KEY_BYTES,
    SALT_BYTES,
    Key,
    SealReason,
    record_bytes,
    salt_seed,
)
from broker.journal.recovery import Recovered, lock_directory, recover
from broker.journal.segment_file import Identity, disk_error
from broker.journal.segments import Segments
from broker.journal.staging import Staging
from common.codec import Buffer
from common.errors import JournalFullError

_RESERVED_SHARE = 4
"""One part in so many of a segment is kept for turns and drops."""


class Log:
    """One open log; only one process can have it open."""

    def __init__(
        self,
        directory: Path,
        owner: str,
        *,
        segment_bytes: int,
        max_bytes: int,
        files: Files,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open or create the log in ``directory``; ``max_bytes`` 0 leaves the bound to the disk.

        Raises :class:`JournalError` with file, cause and cure.
        """
        self._files = files
        self._lock, identity, found = _open(files, directory, owner, segment_bytes)
        self._salted = salt_seed(found.salt)
        self._segments = Segments(files, identity, found.chain, found.spare, max_bytes=max_bytes)
        self._segments.start_at(found.last_sequence)
        self._index = found.index
        self._staging = Staging(self._salted, found.last_sequence + 1)
        self._reserved_bytes = segment_bytes // _RESERVED_SHARE
        parts = (self._segments, self._index, self._staging)
        self._reader = LogReader(*parts, self._salted)
        self._writer = LogWriter(*parts, self._salted, clock)
        self._compaction = Compaction(
            *parts,
            reader=self._reader,
            writer=self._writer,
            segment_bytes=segment_bytes,
            reserved_bytes=self._reserved_bytes,
        )
        self._writer.try_spare()

    # --- reading ----------------------------------------------------------------------------------

    @property
    def last_sequence(self) -> int:
        """Sequence of the newest record, staged ones included."""
        return self._staging.next_sequence - 1

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return self._segments.num_bytes

    @property
    def live_bytes(self) -> int:
        """Bytes of the records that are needed."""
        return self._index.live_bytes

    @property
    def groups(self) -> KeysView[int]:
        """Groups with written keyed records."""
        return self._index.groups.keys()

    def keys(self) -> list[Key]:
        """Keys of all written records that are live."""
        return [key for group in self._index.groups.values() for key in group]

    def __contains__(self, key: Key) -> bool:
        """Whether ``key`` has a record, written or staged."""
        return self._staging.has_key(key) or self._index.place_of(key) is not None

    def get(self, key: Key) -> memoryview:
        """Contents of the record of ``key``; ``KeyError`` if it has none."""
        return self._reader.get(key)

    def checkpointed(self) -> Iterator[memoryview]:
        """Contents of the parts of the last checkpoint that was written, in order."""
        return self._reader.checkpointed()

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of its records."""
        return self._index.checkpoint.bytes_in.total()

    def turns(self) -> Iterator[memoryview]:
        """Contents of the turns that it does not replace, in order."""
        return self._reader.turns()

    def last_turn(self) -> memoryview | None:
        """Contents of the newest of them."""
        return self._reader.last_turn()

    # --- staging ----------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes of keyed records that are sure to be written, even on a full disk; 0: take none."""
        spare = self._segments.spare.segment
        if spare is None:
            return 0
        return max(spare.room - self._reserved_bytes - self._staging.num_bytes, 0)

    @property
    def is_full(self) -> bool:
        """Whether the disk had no room for a spare segment."""
        return self._segments.spare.segment is None

    @property
    def turn_room(self) -> int:
        """Bytes of turns and checkpoints that are sure to be written, even on a full disk."""
        spare = self._segments.spare.segment
        room = self._segments.active.room + (0 if spare is None else spare.room)
        return room - self._staging.num_bytes

    def has_room(self, num_bytes: int) -> bool:
        """Whether one more keyed record of ``num_bytes`` is sure to be written.

        Writes the records that are staged, if that makes room.
        """
        need = record_bytes(KEY_BYTES + num_bytes)
        if need > self.room and self._staging:
            try:
                self._writer.write()
            except JournalFullError:
                return False
        return need <= self.room or (
            not self._staging and self._segments.spare.grow(need + self._reserved_bytes)
        )

    def put(self, key: Key, contents: Sequence[Buffer]) -> None:
        """Keep ``contents`` under ``key`` until the group ``key[0]`` is dropped."""
        self._staging.put(key, contents, self._segments.durable)

    def drop(self, groups: Iterable[int]) -> None:
        """Forget the keyed records of ``groups``, together with the next turn or checkpoint."""
        for group in groups:
            if self._staging.has_group(group) or group in self._index.groups:
                self._staging.drop(group)
                self._index.drop(group)

    def append(self, contents: Buffer) -> None:
        """Add a turn; drops since the last one become part of it: both survive, or neither."""
        self._staging.add_turn((contents,), self._segments.durable)

    def begin_checkpoint(self) -> None:
        """Have the next part be the first of a checkpoint; an unfinished one will never count."""
        self._staging.begin_checkpoint()

    def add_part(self, contents: Buffer) -> None:
        """Add a part of a checkpoint that replaces the turns before its first part, once it ends.

        Turns may come between the parts. If the process ends there, the checkpoint never counts.
        """
        self._staging.add_part(contents, self._segments.durable, is_last=False)

    def checkpoint(self, contents: Buffer) -> None:
        """Add the last part of a checkpoint, which may be the only one; drops are part of it."""
        self._staging.add_part(contents, self._segments.durable, is_last=True)

    # --- writing ----------------------------------------------------------------------------------

    def write(self) -> None:
        """Hand all that is staged to the system: it survives the end of this process.

        Raises :class:`JournalFullError` if the disk has no room; what was not written stays staged,
        and the next call tries again. Raises :class:`JournalError` when the disk fails.
        """
        self._staging.add_drops(self._segments.durable)
        self._writer.write()

    def sync(self) -> None:
        """Return when all that was written before survives a crash of the system, and tidy up.

        May be called from another thread. Raises :class:`JournalError` when the disk fails.
        """
        self.make_durable()
        self.tidy()

    def make_durable(self) -> None:
        """The first half of :meth:`sync`, for those who wait for nothing else."""
        self._segments.make_durable()

    def tidy(self) -> None:
        """The other half: what released and sealed segments and the spare ask of the disk."""
        self._segments.tidy()

    @property
    def is_untidy(self) -> bool:
        """Whether there may be work for :meth:`tidy`."""
        return self._segments.is_untidy

    def prewrite(self) -> bool:
        """Make syncs into the spare quicker by writing a piece of it; returns whether more is left.

        May be called from another thread. Raises :class:`JournalError` when the disk fails.
        """
        return self._segments.spare.prewrite()

    @property
    def has_unfinished_spare(self) -> bool:
        """Whether going on in the next segment would have to wait for the disk."""
        return self._segments.spare.is_unfinished

    def finish_spare(self) -> None:
        """Wait for that now; may be called from another thread."""
        self._segments.spare.finish()

    # --- upkeep -----------------------------------------------------------------------------------

    @property
    def wants_checkpoint(self) -> bool:
        """Whether a checkpoint would let go of old segments that the disk can no longer spare."""
        return self._compaction.wants_checkpoint

    def maintain(self) -> bool:
        """Do a bounded piece of upkeep, after :meth:`write`; returns whether more is left to do.

        Makes the spare segment, lets go of segments that nobody needs (the next :meth:`sync`
        deletes them) and stages copies of live records for the next :meth:`write`.
        """
        return self._compaction.step()

    # --- closing ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Forget what is staged, sync, seal the log and release it.

        On a full disk it is not sealed, so that it can be opened again without more space. After an
        error of the disk everything is left as it is.
        """
        try:
            if self._segments.disk.failure is None:
                self.sync()
                if self._segments.spare.segment is not None:
                    seal = self._writer.seal(SealReason.CLOSED, self._segments.durable + 1)
                    self._segments.seal(seal)
                    self._segments.spare.drop()
        finally:
            self._segments.close()
            self._files.close(self._lock)


def _open(
    files: Files, directory: Path, owner: str, segment_bytes: int
) -> tuple[int, Identity, Recovered]:
    """Lock and read a log, or begin one; returns its lock, its identity and what it holds."""
    try:
        files.make_directory(directory)
    except OSError as error:
        raise disk_error(directory, error) from None
    lock = lock_directory(files, directory)
    try:
        identity = Identity(directory, owner, os.urandom(SALT_BYTES), segment_bytes)
        found = recover(files, identity)
    except BaseException:
        files.close(lock)
        raise
    return lock, Identity(directory, owner, found.salt, segment_bytes), found
