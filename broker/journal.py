"""The durable journal: events, rollout payloads and snapshots in one SQLite file.

Write-ahead logging with ``synchronous=FULL``: a committed turn of the server survives kill -9 and a
crash of the system. All messages of a turn share one commit. Payloads live until their group has
ended and events until the next snapshot, so the file is bounded by the live groups.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from broker.events import AnyEvent
from broker.ledger_state import LedgerState
from common.codec import Buffer
from common.errors import JournalError
from common.types import RolloutHeader, RolloutId

FORMAT_VERSION = 1
SNAPSHOT_EVERY = 20_000
"""Events between snapshots: a restart replays at most so many."""

_APPLICATION_ID = 0x48524A4C
_CACHE_KIB = 65536
_WAL_LIMIT_BYTES = 64 << 20
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE events (seq INTEGER PRIMARY KEY, event BLOB NOT NULL);
CREATE TABLE payloads (
  group_id INTEGER NOT NULL, idx INTEGER NOT NULL, attempt INTEGER NOT NULL,
  header BLOB NOT NULL, arrays BLOB NOT NULL,
  PRIMARY KEY (group_id, idx, attempt)
);
"""

_event_decoder = msgspec.msgpack.Decoder(AnyEvent)
_header_decoder = msgspec.msgpack.Decoder(RolloutHeader)
_encoder = msgspec.msgpack.Encoder()


class Journal:
    """One open journal; only one process can have it open."""

    def __init__(self, path: Path, run_id: str) -> None:
        """Open or create ``path``; raises :class:`JournalError` with file, cause and cure."""
        self._path = path
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=0.0, isolation_level=None)
            try:
                self._prepare(run_id)
            except BaseException:
                self._connection.close()
                raise
        self._num_since_snapshot = self._count_events()
        self._next_seq = self._last_seq() + 1

    # --- reading ----------------------------------------------------------------------------------

    def load(self) -> tuple[LedgerState | None, Iterator[AnyEvent]]:
        """The last snapshot and the events after it."""
        with self._errors():
            row = self._connection.execute("SELECT value FROM meta WHERE key = 'snapshot'")
            snapshot = row.fetchone()
        try:
            state = msgspec.msgpack.decode(snapshot[0], type=LedgerState) if snapshot else None
        except msgspec.DecodeError as error:
            raise self._damaged(f"snapshot: {error}") from None
        return state, self._events()

    def payload(self, rollout_id: RolloutId) -> tuple[RolloutHeader, list[memoryview]]:
        """Header and the three frames of one rollout; raises ``KeyError`` if there is none."""
        with self._errors():
            row = self._connection.execute(
                "SELECT header, arrays FROM payloads "
                "WHERE group_id = ? AND idx = ? AND attempt = ?",
                (rollout_id.group_id, rollout_id.index, rollout_id.attempt),
            ).fetchone()
        if row is None:
            raise KeyError(rollout_id)
        header = _header_decoder.decode(row[0])
        return header, _split(header, memoryview(row[1]))

    @property
    def num_bytes(self) -> int:
        """Size of the database file, by its own count of pages."""
        with self._errors():
            pages = self._connection.execute("PRAGMA page_count").fetchone()[0]
            size = self._connection.execute("PRAGMA page_size").fetchone()[0]
        return int(pages) * int(size)

    # --- writing ----------------------------------------------------------------------------------

    def add_payload(self, header: RolloutHeader, frames: Sequence[Buffer]) -> None:
        """Keep the arrays of one rollout, from the next :meth:`commit` on."""
        rollout_id = header.rollout_id
        row = (
            rollout_id.group_id,
            rollout_id.index,
            rollout_id.attempt,
            _encoder.encode(header),
            b"".join(frames),
        )
        with self._errors():
            self._begin()
            self._connection.execute("INSERT OR REPLACE INTO payloads VALUES (?, ?, ?, ?, ?)", row)

    def drop_payloads(self, group_ids: Iterable[int]) -> None:
        """Forget the arrays of groups that have ended, from the next :meth:`commit` on."""
        with self._errors():
            self._begin()
            self._connection.executemany(
                "DELETE FROM payloads WHERE group_id = ?", [(group,) for group in group_ids]
            )

    def add_events(self, events: Sequence[AnyEvent]) -> None:
        """Append events, durable from the next :meth:`commit` on."""
        rows = [
            (seq, _encoder.encode(event)) for seq, event in enumerate(events, start=self._next_seq)
        ]
        with self._errors():
            self._begin()
            self._connection.executemany("INSERT INTO events VALUES (?, ?)", rows)
        self._next_seq += len(rows)
        self._num_since_snapshot += len(rows)

    @property
    def wants_snapshot(self) -> bool:
        """Whether enough events have gathered."""
        return self._num_since_snapshot >= SNAPSHOT_EVERY

    def add_snapshot(self, state: LedgerState) -> None:
        """Replace all events by the state that they lead to, from the next :meth:`commit` on."""
        with self._errors():
            self._begin()
            self._connection.execute(
                "INSERT OR REPLACE INTO meta VALUES ('snapshot', ?)", (_encoder.encode(state),)
            )
            self._connection.execute("DELETE FROM events")
        self._num_since_snapshot = 0

    def commit(self) -> None:
        """Make everything added durable; raises :class:`JournalError` when it cannot be."""
        if self._connection.in_transaction:
            with self._errors():
                self._connection.execute("COMMIT")

    def close(self) -> None:
        """Drop what was not committed and release the file."""
        self._connection.close()

    # --- opening ----------------------------------------------------------------------------------

    def _prepare(self, run_id: str) -> None:
        connection = self._connection
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._check_ownership()
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
        connection.execute("BEGIN IMMEDIATE")
        if self._is_empty():
            self._create(run_id)
        self._check(run_id)
        connection.execute("COMMIT")

    def _check_ownership(self) -> None:
        """Leave the database of another program as it is."""
        application_id = self._connection.execute("PRAGMA application_id").fetchone()[0]
        if application_id != _APPLICATION_ID and not self._is_empty():
            raise self._error("is another program's database", "use another run.directory")

    def _is_empty(self) -> bool:
        row = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return int(row[0]) == 0

    def _create(self, run_id: str) -> None:
        self._connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        for statement in _SCHEMA.strip().split(";\n"):
            self._connection.execute(statement)
        meta = [("run_id", run_id), ("format", FORMAT_VERSION)]
        self._connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)

    def _check(self, run_id: str) -> None:
        meta = dict(
            self._connection.execute(
                "SELECT key, value FROM meta WHERE key IN ('run_id', 'format')"
            )
        )
        if meta.get("format") != FORMAT_VERSION:
            raise self._error(
                f"has format {meta.get('format')}, this program writes {FORMAT_VERSION}",
                "use the headrace version that wrote it, or another run.directory",
            )
        if meta.get("run_id") != run_id:
            raise self._error(
                f"belongs to run {meta.get('run_id')!r}, not {run_id!r}",
                "set run.id to the former, or use another run.directory",
            )

    def _begin(self) -> None:
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")

    def _events(self) -> Iterator[AnyEvent]:
        with self._errors():
            rows = self._connection.execute("SELECT seq, event FROM events ORDER BY seq").fetchall()
        for seq, encoded in rows:
            try:
                yield _event_decoder.decode(encoded)
            except msgspec.DecodeError as error:
                raise self._damaged(f"event {seq}: {error}") from None

    def _count_events(self) -> int:
        with self._errors():
            return int(self._connection.execute("SELECT count(*) FROM events").fetchone()[0])

    def _last_seq(self) -> int:
        with self._errors():
            row = self._connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
        return int(row[0])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as :class:`JournalError`, with what a person can do about each."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._error(str(error), _cure(error)) from None
        except OSError as error:
            raise self._error(str(error.strerror), "check the path and its permissions") from None

    def _error(self, cause: str, cure: str) -> JournalError:
        return JournalError(f"journal {self._path}: {cause} ({cure})")

    def _damaged(self, cause: str) -> JournalError:
        return self._error(f"is damaged: {cause}", "restore it, or use another run.directory")


_CURES = {
    sqlite3.SQLITE_FULL: "free some space and start the broker again: nothing acknowledged is lost",
    sqlite3.SQLITE_IOERR: "check disk space and health, then start the broker again: "
    "nothing acknowledged is lost",
    sqlite3.SQLITE_BUSY: "another broker uses it: stop that one, or use another run.directory",
    sqlite3.SQLITE_LOCKED: "another broker uses it: stop that one, or use another run.directory",
    sqlite3.SQLITE_NOTADB: "it is not a headrace journal: use another run.directory",
    sqlite3.SQLITE_CORRUPT: "it is damaged: restore it, or use another run.directory",
    sqlite3.SQLITE_CANTOPEN: "check the path and its permissions",
    sqlite3.SQLITE_READONLY: "make it writable",
}
_PRIMARY_CODE = 0xFF


def _cure(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE
    return _CURES.get(code, "restore the file, or use another run.directory")


def _split(header: RolloutHeader, arrays: memoryview) -> list[memoryview]:
    frames, start = [], 0
    for size in header.frame_bytes():
        frames.append(arrays[start : start + size])
        start += size
    return frames
