"""The broker's writing, repeatable by number of turn, and an oracle of what must be there."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.stores.stores import Store

PAYLOADS_PER_GROUP = 8
SNAPSHOT_EVERY = 200
_NOISE = random.Random(0).randbytes(4 << 20)
_HEAD = struct.Struct("<QQ")


@dataclass(frozen=True)
class Workload:
    """Turns of 8 to 64 small events and a number of payloads of one size."""

    name: str
    payload_bytes: int
    payloads_per_turn: int

    def payloads(self, turn: int) -> Iterator[tuple[int, int, bytes]]:
        """Group, index and contents of what comes in a turn."""
        first = (turn - 1) * self.payloads_per_turn
        for number in range(first, first + self.payloads_per_turn):
            group, index = divmod(number, PAYLOADS_PER_GROUP)
            yield group, index, self.payload(group, index)

    def payload(self, group: int, index: int) -> bytes:
        """What a payload must hold."""
        start = (group * 8191 + index * 127) % (len(_NOISE) - self.payload_bytes)
        noise = _NOISE[start : start + self.payload_bytes - _HEAD.size]
        return _HEAD.pack(group, index) + noise

    def events(self, turn: int) -> bytes:
        """What the events of a turn must be."""
        number = 8 + turn * 7919 % 57
        return struct.pack("<QI", turn, number) + _NOISE[turn % 1000 :][: number * 150]

    def last_turn_of(self, group: int) -> int:
        """When a group ends: mostly 20 turns after it came, one in fifty after 400."""
        came = (group + 1) * PAYLOADS_PER_GROUP // max(self.payloads_per_turn, 1) + 1
        return came + (400 if group % 50 == 49 else 20)

    def ended_in(self, turn: int) -> list[int]:
        """Groups that end in a turn."""
        if not self.payloads_per_turn:
            return []
        newest = turn * self.payloads_per_turn // PAYLOADS_PER_GROUP
        reach = 420 * self.payloads_per_turn // PAYLOADS_PER_GROUP + 2
        groups = range(max(newest - reach, 0), newest + 1)
        return [group for group in groups if self.last_turn_of(group) == turn]

    def run(self, store: Store, turn: int) -> None:
        """One turn, committed."""
        for group, index, data in self.payloads(turn):
            store.put(group, index, data)
        store.turn(turn, self.events(turn))
        store.drop(self.ended_in(turn))
        if turn % SNAPSHOT_EVERY == 0:
            store.snapshot(turn, _NOISE[: 256 << 10])
        store.commit()

    def live(self, turn: int) -> set[tuple[int, int]]:
        """Payloads that must be there after a turn."""
        numbers = range(turn * self.payloads_per_turn)
        keys = (divmod(number, PAYLOADS_PER_GROUP) for number in numbers)
        return {(g, i) for g, i in keys if self.last_turn_of(g) > turn}

    def verdict(self, store: Store, acknowledged: int) -> str:
        """``right`` if a store holds exactly what it held after some turn >= ``acknowledged``."""
        events = list(store.events())
        first = newest = acknowledged // SNAPSHOT_EVERY * SNAPSHOT_EVERY
        if events:
            (first,) = struct.unpack_from("<Q", events[0])
            newest = first + len(events) - 1
            first -= 1
        if events != [self.events(turn) for turn in range(first + 1, newest + 1)]:
            return "wrong"
        if newest < acknowledged or first % SNAPSHOT_EVERY:
            return "lost"
        keys = set(store.keys())
        if keys != self.live(newest):
            return "lost" if self.live(newest) - keys else "wrong"
        is_right = all(store.get(*key) == self.payload(*key) for key in sorted(keys))
        return "right" if is_right else "wrong"


WORKLOADS = {
    each.name: each
    for each in (
        Workload("events", 4096, 0),
        Workload("4KiB", 4096, 16),
        Workload("256KiB", 256 << 10, 4),
    )
}
