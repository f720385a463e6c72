"""A durable log of keyed records and turns, in bounded disk space. It knows nothing of ledgers.

Keyed records (:meth:`Log.put`) live until their group is dropped. Turns (:meth:`Log.append`) live
until a checkpoint that began later ends (:meth:`Log.add_part`, :meth:`Log.checkpoint`). Everything
is staged first; :meth:`Log.write` hands it to the system, in order, and :meth:`Log.sync`, which
another thread may call meanwhile, makes it durable.

The disk holds at most twice the live bytes and five segments: the oldest segment is deleted once
nothing in it is live, and the few live records in it are copied to the end when garbage outweighs
them. Each byte is copied at most about once for each byte of garbage that goes.

A full disk shows when no spare segment can be made. From then on :attr:`Log.room` is 0, which asks
the caller to take in no more keyed records, and the active segment keeps room for turns and drops;
they lead to deletions, and so to a spare.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, KeysView, Sequence
from pathlib import Path

from broker.journal.files import Files
from broker.journal.index import Place
from broker.journal.records import (
    KEY_BYTES,
    SALT_BYTES,
    Key,
    Kind,
    SealReason,
    body_of,
    decode_drops,
    decode_part,
    decode_record_header,
    encode_number,
    encode_record,
    is_body_sound,
    record_bytes,
    salt_seed,
)
from broker.journal.recovery import lock_directory, recover
from broker.journal.scan import DamagedError
from broker.journal.segment_file import Identity, disk_error
from broker.journal.segments import Segments
from broker.journal.staging import Staged, Staging
from common.codec import Buffer
from common.errors import JournalFullError

COPY_BYTES = 4 << 20
"""Live bytes that one call of :meth:`Log.maintain` copies at most, but for one larger record."""
SPARE_RETRY_S = 0.25
"""A full disk is asked for a spare segment at most so often."""
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
        self._clock = clock
        self._segment_bytes = segment_bytes
        try:
            files.make_directory(directory)
        except OSError as error:
            raise disk_error(directory, error) from None
        self._lock = lock_directory(files, directory)
        try:
            identity = Identity(directory, owner, os.urandom(SALT_BYTES), segment_bytes)
            found = recover(files, identity)
        except BaseException:
            files.close(self._lock)
            raise
        identity = Identity(directory, owner, found.salt, segment_bytes)
        self._segments = Segments(files, identity, found.chain, found.spare, max_bytes=max_bytes)
        self._segments.start_at(found.last_sequence)
        self._salted = salt_seed(found.salt)
        self._index = found.index
        self._staging = Staging(self._salted, found.last_sequence + 1)
        self._reserved_bytes = segment_bytes // _RESERVED_SHARE
        self._next_try_s = clock()
        self._try_spare()

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

    def get(self, key: Key) -> memoryview:
        """Contents of the record of ``key``; ``KeyError`` if it has none."""
        staged = self._staging.get(key)
        if staged is not None:
            return staged
        place = self._index.place_of(key)
        if place is None:
            raise KeyError(key)
        return self._read(place)[KEY_BYTES:]

    def checkpointed(self) -> Iterator[memoryview]:
        """Contents of the parts of the last checkpoint that was written, in order."""
        for place in self._index.checkpoint.places:
            body = self._read(place)
            yield body[decode_part(body)[2] :]

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of its records."""
        return self._index.checkpoint.bytes_in.total()

    def turns(self) -> Iterator[memoryview]:
        """Contents of the turns that it does not replace, in order."""
        return map(self._turn_at, self._index.turns)

    def last_turn(self) -> memoryview | None:
        """Contents of the newest of them."""
        place = self._index.last_turn
        return None if place is None else self._turn_at(place)

    def _turn_at(self, place: Place) -> memoryview:
        body = self._read(place)
        return body[decode_drops(body)[1] :]

    def _read(self, place: Place) -> memoryview:
        data = self._segments.read(place.segment, place.offset, place.num_bytes)
        header = decode_record_header(self._salted, data, 0)
        if header is None or not is_body_sound(header, data, 0):
            path = self._segments.path_of(place.segment)
            raise DamagedError(path, place.offset, "the record does not match its checksum")
        return body_of(header, data)

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
                self._write_staged()
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
        self._write_staged()

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

    def _write_staged(self) -> None:
        self._segments.disk.check()
        while self._staging:
            batch, num_bytes = self._staging.batch(self._segments.active.room)
            try:
                if batch:
                    self._write_batch(batch, num_bytes)
                else:
                    self._advance(self._staging.first.sequence, self._staging.first.num_bytes)
            except OSError as error:
                raise self._full(error.strerror or "no space") from None

    def _write_batch(self, batch: Sequence[Staged], num_bytes: int) -> None:
        buffers = [buffer for staged in batch for buffer in staged.buffers]
        segment, offset = self._segments.append(buffers, num_bytes, batch[-1].sequence)
        for _ in batch:
            staged, counts = self._staging.pop()
            if counts:
                self._file(staged, Place(segment, offset, staged.num_bytes))
            offset += staged.num_bytes

    def _file(self, staged: Staged, place: Place) -> None:
        """Note where a record lies."""
        if staged.key is not None:
            self._index.put(staged.key, place)
        elif staged.part is None:
            self._index.add_turn(place)
        elif staged.kind is Kind.PART:
            self._index.add_part(staged.part, place)
        else:
            self._index.set_checkpoint(staged.part, place)

    def _advance(self, sequence: int, need_bytes: int) -> None:
        """Go on with this record in the spare segment and have another spare made."""
        self._try_spare()
        if not self._segments.advance(self._seal(SealReason.FULL, sequence), sequence, need_bytes):
            raise self._full("no room for another segment")
        self._try_spare()

    def _seal(self, reason: SealReason, sequence: int) -> list[Buffer]:
        durable = self._segments.durable
        return encode_record(self._salted, Kind.SEAL, sequence, durable, [encode_number(reason)])[0]

    def _full(self, cause: str) -> JournalFullError:
        return JournalFullError(
            f"journal {self._segments.directory}: {cause}; {self._staging.num_bytes} bytes wait "
            "(free some space: nothing acknowledged is lost)"
        )

    # --- upkeep -----------------------------------------------------------------------------------

    @property
    def wants_checkpoint(self) -> bool:
        """Whether a checkpoint would let go of old segments that the disk can no longer spare."""
        oldest = self._segments.numbers[0]
        is_held = oldest != self._segments.active.number and self._index.has_history(oldest)
        return is_held and (self._is_over_bound or self._segments.spare.segment is None)

    def maintain(self) -> bool:
        """Do a bounded piece of upkeep, after :meth:`write`; returns whether more is left to do.

        Makes the spare segment, lets go of segments that nobody needs (the next :meth:`sync`
        deletes them) and stages copies of live records for the next :meth:`write`.
        """
        self._try_spare()
        if not self._staging.is_empty:
            return True
        self._release()
        if self._segments.spare.segment is None:
            return self._compact_on_full_disk()
        return self._is_over_bound and self._compact()

    @property
    def _is_over_bound(self) -> bool:
        bound = 2 * self._index.live_bytes + 3 * self._segment_bytes
        return self._segments.kept_bytes > bound

    def _try_spare(self) -> None:
        is_due = self._segments.spare.segment is None and self._clock() >= self._next_try_s
        if is_due and not self._segments.make_spare():
            self._next_try_s = self._clock() + SPARE_RETRY_S

    def _release(self) -> None:
        """Let go of the oldest segments that hold nothing live.

        They are deleted once the record that says so is durable, and with it whatever made their
        records superfluous: it comes later in the log than all of that.
        """
        dead: list[int] = []
        for number in self._segments.numbers[:-1]:
            if self._index.keyed_bytes_in(number) or self._index.has_history(number):
                break
            dead.append(number)
        if dead:
            body = [encode_number(dead[-1] + 1)]
            floor = self._staging.add(Kind.FLOOR, body, self._segments.durable)
            self._segments.release(dead, floor.sequence)

    def _compact(self) -> bool:
        """Copy live records out of the oldest segment; returns whether that leads anywhere."""
        oldest = self._segments.numbers[0]
        if oldest == self._segments.active.number:  # one large segment of garbage: go on in another
            self._advance(self._staging.next_sequence, 0)
            return True
        keys = self._index.keys_in(oldest)
        left = COPY_BYTES
        for key in keys:
            contents = self.get(key)
            self.put(key, [contents])
            left -= len(contents)
            if left <= 0:
                break
        return bool(keys)

    def _compact_on_full_disk(self) -> bool:
        """The same where copies take room that turns may need: only if much is gained by it."""
        active, oldest = self._segments.active, self._segments.numbers[0]
        num_bytes = self._index.keyed_bytes_in(oldest)
        is_gain = oldest != active.number and 2 * num_bytes <= self._segments.size_of(oldest)
        return is_gain and num_bytes <= active.room - self._reserved_bytes and self._compact()

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
                    seal = self._seal(SealReason.CLOSED, self._segments.durable + 1)
                    self._segments.seal(seal)
                    self._segments.spare.drop()
        finally:
            self._segments.close()
            self._files.close(self._lock)
