"""The four stores behind one small interface: keyed payloads, one blob of events a turn."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from broker.journal.files import OsFiles
from broker.journal.log import Log

_KEY = struct.Struct(">BQQ")
_PAYLOAD, _TURN, _SNAPSHOT = 1, 2, 3


class Store(Protocol):
    """What the benchmark asks; everything up to :meth:`commit` becomes durable together."""

    def put(self, group: int, index: int, data: bytes) -> None:
        """Keep a payload until its group is dropped."""

    def drop(self, groups: Sequence[int]) -> None:
        """Forget the payloads of groups."""

    def turn(self, number: int, events: bytes) -> None:
        """Append the events of a turn."""

    def snapshot(self, number: int, state: bytes) -> None:
        """Replace the events of all turns up to ``number``."""

    def commit(self) -> None:
        """Return when all of it survives a crash of the system."""

    def get(self, group: int, index: int) -> bytes:
        """One payload."""

    def keys(self) -> Iterator[tuple[int, int]]:
        """Group and index of all payloads."""

    def events(self) -> Iterator[bytes]:
        """Events of the turns behind the last snapshot."""

    def close(self) -> None:
        """Close in peace."""


class Segments:
    """headrace's own log, as the broker opens it."""

    def __init__(self, folder: Path) -> None:
        self._log = Log(folder, "run", segment_bytes=64 << 20, max_bytes=0, files=OsFiles())

    def put(self, group: int, index: int, data: bytes) -> None:
        self._log.put((group, index, 0), [data])

    def drop(self, groups: Sequence[int]) -> None:
        self._log.drop(groups)

    def turn(self, number: int, events: bytes) -> None:
        self._log.append(events)

    def snapshot(self, number: int, state: bytes) -> None:
        self._log.checkpoint(state)

    def commit(self) -> None:
        self._log.write()
        self._log.sync()
        self._log.maintain()

    def get(self, group: int, index: int) -> bytes:
        return bytes(self._log.get((group, index, 0)))

    def keys(self) -> Iterator[tuple[int, int]]:
        return ((key[0], key[1]) for key in self._log.keys())  # noqa: SIM118

    def events(self) -> Iterator[bytes]:
        return map(bytes, self._log.turns())

    def close(self) -> None:
        self._log.close()


class Sqlite:
    """SQLite in WAL mode, ``synchronous=FULL``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(folder / "store.sqlite", isolation_level=None)
        for line in (
            "PRAGMA locking_mode = EXCLUSIVE",
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "PRAGMA cache_size = -65536",
            "PRAGMA journal_size_limit = 67108864",
            "CREATE TABLE IF NOT EXISTS turns (number INTEGER PRIMARY KEY, events BLOB)",
            "CREATE TABLE IF NOT EXISTS snapshots (id INTEGER PRIMARY KEY, state BLOB)",
            "CREATE TABLE IF NOT EXISTS payloads "
            "(grp INTEGER, idx INTEGER, data BLOB, PRIMARY KEY (grp, idx))",
            "BEGIN",
        ):
            self._db.execute(line)

    def put(self, group: int, index: int, data: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO payloads VALUES (?, ?, ?)", (group, index, data))

    def drop(self, groups: Sequence[int]) -> None:
        self._db.executemany("DELETE FROM payloads WHERE grp = ?", [(g,) for g in groups])

    def turn(self, number: int, events: bytes) -> None:
        self._db.execute("INSERT INTO turns VALUES (?, ?)", (number, events))

    def snapshot(self, number: int, state: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO snapshots VALUES (0, ?)", (state,))
        self._db.execute("DELETE FROM turns WHERE number <= ?", (number,))

    def commit(self) -> None:
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def get(self, group: int, index: int) -> bytes:
        query = "SELECT data FROM payloads WHERE grp = ? AND idx = ?"
        return bytes(self._db.execute(query, (group, index)).fetchone()[0])

    def keys(self) -> Iterator[tuple[int, int]]:
        return iter(self._db.execute("SELECT grp, idx FROM payloads").fetchall())

    def events(self) -> Iterator[bytes]:
        rows = self._db.execute("SELECT events FROM turns ORDER BY number")
        return (row[0] for row in rows)

    def close(self) -> None:
        self._db.execute("ROLLBACK")
        self._db.close()


class RocksDb:
    """RocksDB through rocksdict: a synced write batch a turn, values of 4 KiB and more as blobs."""

    def __init__(self, folder: Path) -> None:
        import rocksdict

        options = rocksdict.Options(raw_mode=True)
        options.set_enable_blob_files(True)
        options.set_min_blob_size(4096)
        options.set_enable_blob_gc(True)
        self._new_batch = lambda: rocksdict.WriteBatch(raw_mode=True)
        self._db = rocksdict.Rdict(str(folder), options)
        self._options = rocksdict.WriteOptions()
        self._options.sync = True
        self._batch: Any = self._new_batch()

    def put(self, group: int, index: int, data: bytes) -> None:
        self._batch.put(_KEY.pack(_PAYLOAD, group, index), data)

    def drop(self, groups: Sequence[int]) -> None:
        for group in groups:
            start, end = _KEY.pack(_PAYLOAD, group, 0), _KEY.pack(_PAYLOAD, group + 1, 0)
            self._batch.delete_range(start, end)

    def turn(self, number: int, events: bytes) -> None:
        self._batch.put(_KEY.pack(_TURN, number, 0), events)

    def snapshot(self, number: int, state: bytes) -> None:
        self._batch.put(_KEY.pack(_SNAPSHOT, 0, 0), state)
        self._batch.delete_range(_KEY.pack(_TURN, 0, 0), _KEY.pack(_TURN, number + 1, 0))

    def commit(self) -> None:
        self._db.write(self._batch, self._options)
        self._batch = self._new_batch()

    def get(self, group: int, index: int) -> bytes:
        return bytes(self._db[_KEY.pack(_PAYLOAD, group, index)])

    def keys(self) -> Iterator[tuple[int, int]]:
        return (_KEY.unpack(iterator.key())[1:] for iterator in self._records(_PAYLOAD))

    def events(self) -> Iterator[bytes]:
        return (bytes(iterator.value()) for iterator in self._records(_TURN))

    def close(self) -> None:
        self._db.close()

    def _records(self, kind: int) -> Iterator[Any]:
        """The database's own iterator at each record of a kind; raises if that met damage."""
        iterator = self._db.iter()
        iterator.seek(_KEY.pack(kind, 0, 0))
        while iterator.valid() and iterator.key()[0] == kind:
            yield iterator
            iterator.next()
        iterator.status()


class Lmdb:
    """LMDB, one synced write transaction a turn."""

    def __init__(self, folder: Path) -> None:
        import lmdb

        folder.mkdir(parents=True, exist_ok=True)
        self._env = lmdb.open(str(folder), map_size=32 << 30)
        self._transaction = self._env.begin(write=True)

    def put(self, group: int, index: int, data: bytes) -> None:
        self._transaction.put(_KEY.pack(_PAYLOAD, group, index), data)

    def drop(self, groups: Sequence[int]) -> None:
        for group in groups:
            self._delete(_KEY.pack(_PAYLOAD, group, 0), _KEY.pack(_PAYLOAD, group + 1, 0))

    def turn(self, number: int, events: bytes) -> None:
        self._transaction.put(_KEY.pack(_TURN, number, 0), events)

    def snapshot(self, number: int, state: bytes) -> None:
        self._transaction.put(_KEY.pack(_SNAPSHOT, 0, 0), state)
        self._delete(_KEY.pack(_TURN, 0, 0), _KEY.pack(_TURN, number + 1, 0))

    def commit(self) -> None:
        self._transaction.commit()
        self._transaction = self._env.begin(write=True)

    def get(self, group: int, index: int) -> bytes:
        return bytes(self._transaction.get(_KEY.pack(_PAYLOAD, group, index)))

    def keys(self) -> Iterator[tuple[int, int]]:
        for key, _ in self._transaction.cursor():
            kind, group, index = _KEY.unpack(key)
            if kind == _PAYLOAD:
                yield group, index

    def events(self) -> Iterator[bytes]:
        return (bytes(value) for key, value in self._transaction.cursor() if key[0] == _TURN)

    def close(self) -> None:
        self._transaction.abort()
        self._env.close()

    def _delete(self, start: bytes, end: bytes) -> None:
        cursor = self._transaction.cursor()
        found = cursor.set_range(start)
        while found and cursor.key() < end:
            found = cursor.delete()


STORES: dict[str, Callable[[Path], Store]] = {
    "segments": Segments,
    "sqlite": Sqlite,
    "rocksdb": RocksDb,
    "lmdb": Lmdb,
}
