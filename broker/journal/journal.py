"""The broker's journal: events, rollout payloads and snapshots of the ledger, in one log.

The events of a turn of the server are one record, each payload is one. :meth:`Journal.write` puts
them into the files: they survive kill -9 of any process. :meth:`Journal.sync` keeps the promise of
``acks``:

- ``durable``: it returns once the disk has everything written before, so that it survives a crash
  of the operating system, too;
- ``relaxed``: it returns at once. A thread syncs every :data:`RELAXED_WINDOW_S`; a crash of the
  operating system loses the newest turns written in that time and during the sync that it cut
  short, but never part of a turn, never an older turn, and never the order. What the consumer
  is told (:data:`ALWAYS_DURABLE`) is synced nevertheless, and with it all that came before: a
  ledger behind its learner would have groups trained a second time.

Payloads live until their group has ended and events until a later snapshot is complete, so the
files are bounded by the live groups. A snapshot is spread over turns: one record a slice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, KeysView, Sequence
from pathlib import Path
from typing import Literal

from broker.events import AnyEvent
from broker.journal.event_turns import ALWAYS_DURABLE, count_events, load, pack_turn
from broker.journal.files import Files, OsFiles
from broker.journal.log import Log
from broker.journal.payloads import (
    PayloadCache,
    key_of,
    pack_payload,
    pack_reference,
    reference_key_of,
    unpack_payload,
    unpack_reference,
)
from broker.journal.snapshot_writer import SnapshotWriter
from broker.journal.syncer import Syncer
from broker.journal.upkeep import Upkeep
from broker.ledger_state import LedgerState
from broker.snapshots import DEFAULT_PACE, Snapshot, SnapshotPace
from common.codec import Buffer
from common.errors import JournalError
from common.types import ReferenceHeader, RolloutHeader, RolloutId, WeightVersion

SEGMENT_BYTES = 64 << 20
CACHE_BYTES = 64 << 20
RELAXED_WINDOW_S = 1.0
LEFTOVER_NAME = "journal.sqlite"

Acks = Literal["durable", "relaxed"]


class Journal:
    """One open journal; only one process can have it open."""

    def __init__(
        self,
        directory: Path,
        run_id: str,
        *,
        acks: Acks = "durable",
        segment_bytes: int = SEGMENT_BYTES,
        max_bytes: int = 0,
        cache_bytes: int = CACHE_BYTES,
        files: Files | None = None,
        pace: SnapshotPace = DEFAULT_PACE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open or create the journal in ``directory``; ``max_bytes`` 0: only the disk bounds it.

        Raises :class:`JournalError` with file, cause and cure.
        """
        refuse_leftover(directory)
        self._log = Log(
            directory,
            run_id,
            segment_bytes=segment_bytes,
            max_bytes=max_bytes,
            files=files or OsFiles(),
            clock=clock,
        )
        self._events: list[AnyEvent] = []
        self._cache = PayloadCache(cache_bytes)
        self._directory = directory
        self._snapshots = SnapshotWriter(self._log, pace)
        self._next_event, self._num_since_snapshot = count_events(self._log)
        self._syncer = Syncer(self._log, RELAXED_WINDOW_S) if acks == "relaxed" else None
        self._num_durable_turns = self._num_synced_turns = 0
        self._upkeep: Upkeep | None = None

    # --- reading ----------------------------------------------------------------------------------

    def load(self) -> tuple[LedgerState | None, Iterator[AnyEvent]]:
        """The last snapshot and the events after it."""
        return load(self._log, self._directory)

    def payload(self, rollout_id: RolloutId) -> tuple[RolloutHeader, list[memoryview]]:
        """Header and the frames of one rollout; raises ``KeyError`` if there is none."""
        key = key_of(rollout_id)
        cached = self._cache.get(key)
        return unpack_payload(self._log.get(key)) if cached is None else cached

    @property
    def payload_groups(self) -> KeysView[int]:
        """Groups that payloads are kept for."""
        return self._log.groups

    @property
    def num_events(self) -> int:
        """Events written since the journal began, those that a snapshot replaced included."""
        return self._next_event

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return self._log.num_bytes

    @property
    def live_bytes(self) -> int:
        """Bytes that are needed: payloads of live groups, the last snapshot, events after it."""
        return self._log.live_bytes

    # --- staging ----------------------------------------------------------------------------------

    @property
    def accepts_payloads(self) -> bool:
        """False while the disk is full: grant no credit; it turns true again by itself."""
        return self._log.room > 0

    def has_room(self, num_bytes: int) -> bool:
        """Whether one more payload of ``num_bytes`` is sure to be written, whatever the disk does.

        A payload that is added without asking may hold up the turn that it belongs to, and with it
        the deletions that would make room.
        """
        return self._log.has_room(num_bytes)

    def add_payload(self, header: RolloutHeader, frames: Sequence[Buffer]) -> None:
        """Keep the arrays of one rollout."""
        key = key_of(header.rollout_id)
        self._log.put(key, pack_payload(header, frames))
        self._cache.add(key, header, frames)

    def add_reference(self, rollout_id: RolloutId, header: ReferenceHeader, frame: Buffer) -> None:
        """Keep the reference log-probabilities of one rollout; they leave with its group."""
        key = reference_key_of(rollout_id, header.reference_version)
        self._log.put(key, pack_reference(header, frame))

    def reference(
        self, rollout_id: RolloutId, version: WeightVersion
    ) -> tuple[ReferenceHeader, memoryview]:
        """Log-probabilities under the reference ``version``; ``KeyError`` if there are none."""
        return unpack_reference(self._log.get(reference_key_of(rollout_id, version)))

    def drop_payloads(self, group_ids: Iterable[int]) -> None:
        """Forget the arrays of groups that have ended; lasting once the events of the turn are."""
        group_ids = list(group_ids)
        self._log.drop(group_ids)
        self._cache.drop(group_ids)

    def add_events(self, happened: Sequence[AnyEvent]) -> None:
        """Append events to this turn."""
        self._events.extend(happened)
        if self._syncer is not None and not ALWAYS_DURABLE.isdisjoint(map(type, happened)):
            self._num_durable_turns += 1

    def wants_snapshot(self, state: LedgerState) -> bool:
        """Whether one should begin: enough events have gathered, or they hold back old segments."""
        return self._snapshots.is_due(state, self._num_since_snapshot + len(self._events))

    def advance_snapshot(self, state: LedgerState) -> Snapshot | None:
        """Begin a snapshot that is due, or stage a slice of the one under way.

        Returns what is under way then: it must be shown every event before that is applied to
        ``state``. On a full disk it is not spread: what it lets go of is needed at once.
        """
        snapshots = self._snapshots
        if snapshots.under_way is None and not self.wants_snapshot(state):
            return None
        self._stage_events()  # they take along the drops that they led to
        if not self._log.is_full:
            if snapshots.under_way is None:
                self._begin_snapshot(state)
            else:
                snapshots.go_on()
        elif snapshots.has_room_for_another:  # it lets go of more than the rest of an older one
            self.add_snapshot(state)
        elif snapshots.has_room_for_rest:
            snapshots.finish()
        return snapshots.under_way

    def add_snapshot(self, state: LedgerState) -> None:
        """Stage a whole snapshot."""
        self._stage_events()
        self._begin_snapshot(state)
        self._snapshots.finish()

    def _begin_snapshot(self, state: LedgerState) -> None:
        self._snapshots.begin(self._next_event, state)
        self._num_since_snapshot = 0

    # --- keeping ----------------------------------------------------------------------------------

    def write(self) -> None:
        """Write all that is staged into the files: it survives the end of this process.

        Raises :class:`JournalFullError` when there is no room: everything stays staged, in order,
        and the next call tries again. Raises :class:`JournalError` when the disk fails.
        """
        if self._syncer is not None:
            self._syncer.check()
        self._stage_events()
        self._log.write()

    def sync(self) -> None:
        """Return when all that was written before the call is as safe as ``acks`` promises.

        May be called from another thread while this one stages and writes the next turn. Raises
        :class:`JournalError` when the disk fails; the process must end then.
        """
        if self._syncer is not None:
            self._sync_relaxed(self._syncer)
        elif self._upkeep is None:
            self._log.sync()
        else:
            self._log.make_durable()
            self._upkeep.look()

    def _sync_relaxed(self, syncer: Syncer) -> None:
        """Wait for the disk only where the consumer was told something."""
        num_wanted = self._num_durable_turns
        if num_wanted != self._num_synced_turns:
            self._log.make_durable()
            self._num_synced_turns = num_wanted
        syncer.look()

    def use_thread(self) -> None:
        """Have a thread do what a sync leaves behind, so that no reply waits for that."""
        if self._syncer is None:
            self._upkeep = Upkeep(self._log)

    def commit(self) -> None:
        """:meth:`write`, :meth:`sync` and :meth:`maintain`, for callers with one thread."""
        self.write()
        self.sync()
        self.maintain()

    def maintain(self) -> bool:
        """Do a bounded piece of upkeep, after :meth:`write`; returns whether more is left.

        Call it every turn: it makes spare segments, lets old ones go and copies what is live in
        them.
        """
        return self._log.maintain()

    def close(self) -> None:
        """Drop what was not written, seal the journal and release it."""
        for thread in (self._syncer, self._upkeep):
            if thread is not None:
                thread.stop()
        self._log.close()

    # --- events -----------------------------------------------------------------------------------

    def _stage_events(self) -> None:
        if self._events:
            number = len(self._events)
            self._log.append(pack_turn(self._next_event, self._events))
            self._next_event += number
            self._num_since_snapshot += number
            self._events = []


def refuse_leftover(directory: Path) -> None:
    """Refuse the journal of an older headrace beside ``directory``."""
    leftover = directory.parent / LEFTOVER_NAME
    if leftover.is_file():
        raise JournalError(
            f"journal {leftover}: was written by an older headrace "
            "(finish that run with it, or use another run.directory)"
        )
