"""A random user of the log, and what the log must hold after each of its records."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from broker.journal.log import Log
from broker.journal.records import Key
from common.errors import JournalFullError
from tests.fake_disk import FakeDisk

DIRECTORY = Path("/run/broker/journal")
SEGMENT_BYTES = 64 << 10


@dataclass(frozen=True)
class Contents:
    """Everything that a log is kept for."""

    records: dict[Key, bytes] = field(default_factory=dict)
    checkpoint: tuple[bytes, ...] = ()
    """Its parts."""
    turns: tuple[bytes, ...] = ()


def contents_of(log: Log) -> Contents:
    """What a log holds, read from its files."""
    return Contents(
        {key: bytes(log.get(key)) for key in log.keys()},  # noqa: SIM118
        tuple(bytes(part) for part in log.checkpointed()),
        tuple(bytes(turn) for turn in log.turns()),
    )


def open_log(
    disk: FakeDisk, *, segment_bytes: int = SEGMENT_BYTES, max_bytes: int = 0, owner: str = "run"
) -> Log:
    """The log of the tests, with a clock that lets a spare be tried for at every call."""
    return Log(
        DIRECTORY,
        owner,
        segment_bytes=segment_bytes,
        max_bytes=max_bytes,
        files=disk,
        clock=iter(range(1 << 62)).__next__,
    )


class Workload:
    """Drives a log at random; :attr:`history` says what it holds after each sequence."""

    def __init__(self, random: Random, log: Log, start: Contents | None = None) -> None:
        self.random = random
        self.log = log
        self.now = start or Contents()
        self.history: dict[int, Contents] = {log.last_sequence: self.now}
        self.acknowledged = log.last_sequence
        self.is_stalled = False
        self.longest = random.choice((50, 6000, 6000, 20_000, 90_000))
        self.turnover = random.choice((0.03, 0.1, 0.4))
        self._dropped: set[int] = set()
        self._parts: list[bytes] = []
        self._num_replaced = 0
        self._next_group = max((key[0] for key in self.now.records), default=0) + 1

    def at(self, sequence: int) -> Contents:
        """What a log holds that ends with this record."""
        sequences = sorted(self.history)
        return self.history[sequences[bisect.bisect_right(sequences, sequence) - 1]]

    def turn(self) -> None:
        """One turn of a server: some records, some ends, one commit, some upkeep."""
        self.stage()
        self.commit()
        if self.log.maintain():
            self.commit()

    def stage(self) -> None:
        """What a turn has to say."""
        for _ in range(self.random.randint(0, 4)):
            self.put()
        if self.random.random() < 0.5:
            self.drop()
        if self.random.random() < 0.7:
            self.append()
        if self.random.random() < 0.03:
            self.log.begin_checkpoint()
            self._parts = []
        if self.random.random() < 0.2:
            self.part()
        if self.log.wants_checkpoint or self.random.random() < 0.05:
            self.checkpoint()
        self._note_drops()

    def put(self) -> None:
        """A record of a group that is open, or of a new one; sometimes a key comes twice."""
        self._next_group += self.random.random() < 0.5
        key = (self._next_group, self.random.randrange(3), 7)
        data = self.random.randbytes(self.random.randint(0, self.longest))
        if self.log.has_room(len(data)):
            self.log.put(key, [data[:10], memoryview(data)[10:]])
            self._note(
                Contents({**self.now.records, key: data}, self.now.checkpoint, self.now.turns)
            )

    def drop(self) -> None:
        groups = sorted({key[0] for key in self.now.records})
        ended = {group for group in groups[:-1] if self.random.random() < self.turnover}
        self.log.drop(ended)
        self._dropped |= ended

    def append(self) -> None:
        turn = self.random.randbytes(self.random.randint(1, 300))
        self.log.append(turn)
        self._note(Contents(self._kept(), self.now.checkpoint, (*self.now.turns, turn)))

    def part(self) -> None:
        """A part of a checkpoint: it changes nothing yet."""
        part = self.random.randbytes(self.random.randint(1, 2000))
        if self.log.turn_room >= 4000:
            if not self._parts:
                self._num_replaced = len(self.now.turns)
            self.log.add_part(part)
            self._parts.append(part)

    def checkpoint(self) -> None:
        """The last part, or the only one."""
        state = self.random.randbytes(self.random.randint(1, 2000))
        if self.log.turn_room >= 4000:
            since = self.now.turns[self._num_replaced :] if self._parts else ()
            self.log.checkpoint(state)
            self._note(Contents(self._kept(), (*self._parts, state), since))
            self._parts = []

    def commit(self) -> None:
        """Write, sync, acknowledge; a full disk leaves all of it for the next time."""
        try:
            self.log.write()
        except JournalFullError:
            self.is_stalled = True
            return
        self.is_stalled = False
        self.log.sync()
        self.acknowledged = self.log.last_sequence

    def _note_drops(self) -> None:
        """Drops that no turn took along become a record of their own."""
        kept = Contents(self._kept(), self.now.checkpoint, self.now.turns)
        if kept != self.now:
            self.now = self.history[self.log.last_sequence + 1] = kept

    def _kept(self) -> dict[Key, bytes]:
        records = {k: v for k, v in self.now.records.items() if k[0] not in self._dropped}
        self._dropped = set()
        return records

    def _note(self, contents: Contents) -> None:
        self.now = contents
        self.history[self.log.last_sequence] = contents
