"""Records that are staged and not written yet, in order. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from broker.journal.records import (
    Key,
    Kind,
    Part,
    encode_drops,
    encode_key,
    encode_part,
    encode_record,
)
from common.codec import Buffer


@dataclass(eq=False, slots=True)
class Staged:
    """One record, encoded."""

    kind: Kind
    buffers: list[Buffer]
    num_bytes: int
    sequence: int
    key: Key | None = None
    part: Part | None = None
    is_history: bool = False
    """Whether a restart reads it: a part of a checkpoint, or a turn with contents."""


class Staging:
    """A queue of records; the newest contents of each key can be read from it."""

    def __init__(self, salted: int, next_sequence: int) -> None:
        self.next_sequence = next_sequence
        self.num_bytes = 0
        self._salted = salted
        self._queue: deque[Staged] = deque()
        self._keyed: dict[int, dict[Key, Staged]] = {}
        self._drops: dict[int, None] = {}
        self._next_part: Part | None = None
        """Of the checkpoint that is being made."""

    # --- reading ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits, drops that no record says yet included."""
        return not self._queue and not self._drops

    @property
    def first(self) -> Staged:
        """The record to be written next."""
        return self._queue[0]

    def has_group(self, group: int) -> bool:
        """Whether contents of a group are staged."""
        return group in self._keyed

    def has_key(self, key: Key) -> bool:
        """Whether contents of ``key`` are staged."""
        return key in self._keyed.get(key[0], ())

    def get(self, key: Key) -> memoryview | None:
        """Contents of the staged record of ``key``."""
        staged = self._keyed.get(key[0], {}).get(key)
        if staged is None:
            return None
        _, _, *contents, _ = staged.buffers  # record header, key, ..., padding
        return memoryview(b"".join(contents))

    # --- staging ----------------------------------------------------------------------------------

    def put(self, key: Key, contents: Sequence[Buffer], durable: int) -> None:
        """Stage contents of a key; ``durable`` is the last sequence known to be on disk."""
        if key[0] in self._drops:
            self.add_turn((), durable)  # what is put after a drop stays
        staged = self.add(Kind.PUT, [encode_key(key), *contents], durable)
        staged.key = key
        self._keyed.setdefault(key[0], {})[key] = staged

    def drop(self, group: int) -> None:
        """Have the next turn or checkpoint drop a group."""
        self._keyed.pop(group, None)
        self._drops[group] = None

    def add_turn(self, contents: Sequence[Buffer], durable: int) -> None:
        """Stage a turn with all drops since the last turn or checkpoint."""
        self.add(Kind.TURN, [self._take_drops(), *contents], durable).is_history = bool(contents)

    def add_drops(self, durable: int) -> None:
        """Stage the drops that no turn took along, if there are any."""
        if self._drops:
            self.add_turn((), durable)

    def begin_checkpoint(self) -> None:
        """Have the next part be the first of a checkpoint."""
        self._next_part = None

    def add_part(self, contents: Buffer, durable: int, *, is_last: bool) -> None:
        """Stage the next part of a checkpoint; the last one takes the drops along."""
        part = self._next_part or Part(self.next_sequence, 0)
        drops = self._take_drops() if is_last else encode_drops(())
        kind = Kind.CHECKPOINT if is_last else Kind.PART
        staged = self.add(kind, [drops, encode_part(part), contents], durable)
        staged.part, staged.is_history = part, True
        self._next_part = None if is_last else part._replace(number=part.number + 1)

    def _take_drops(self) -> bytes:
        drops = encode_drops(list(self._drops))
        self._drops.clear()
        return drops

    def add(self, kind: Kind, body: Sequence[Buffer], durable: int) -> Staged:
        """Stage any record."""
        sequence = self.next_sequence
        buffers, num_bytes = encode_record(self._salted, kind, sequence, durable, body)
        self.next_sequence += 1
        staged = Staged(kind, buffers, num_bytes, sequence)
        self._queue.append(staged)
        self.num_bytes += num_bytes
        return staged

    # --- writing ----------------------------------------------------------------------------------

    def batch(self, room: int) -> tuple[list[Staged], int]:
        """The first records that fit into ``room`` bytes together, and their bytes."""
        records, num_bytes = [], 0
        for staged in self._queue:
            if num_bytes + staged.num_bytes > room:
                break
            records.append(staged)
            num_bytes += staged.num_bytes
        return records, num_bytes

    def pop(self) -> tuple[Staged, bool]:
        """Take the first record, which is written; tells whether its contents still count.

        They do not if the key was dropped or put again since.
        """
        staged = self._queue.popleft()
        self.num_bytes -= staged.num_bytes
        if staged.key is None:
            return staged, staged.is_history
        group = self._keyed.get(staged.key[0], {})
        is_newest = group.get(staged.key) is staged
        if is_newest:
            del group[staged.key]
            if not group:
                del self._keyed[staged.key[0]]
        return staged, is_newest
