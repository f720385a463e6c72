"""What of a log is still needed, and in which segment it lies. Pure."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import NamedTuple

from broker.journal.records import Key, Part


class Place(NamedTuple):
    """Where a record lies."""

    segment: int
    offset: int
    num_bytes: int


class Turns:
    """Places of turns in one piece of memory, so that it takes no time to forget a million."""

    def __init__(self) -> None:
        self._numbers = array("Q")
        self.bytes_in: Counter[int] = Counter()
        """Bytes by segment."""

    def add(self, place: Place) -> None:
        """Add a turn."""
        self._numbers.extend(place)
        self.bytes_in[place.segment] += place.num_bytes

    def add_all(self, later: Turns) -> None:
        """Add turns that came later."""
        self._numbers.extend(later._numbers)
        self.bytes_in.update(later.bytes_in)

    def places(self) -> list[Place]:
        """All of them, in order."""
        numbers = iter(self._numbers)
        return [Place(*place) for place in zip(numbers, numbers, numbers, strict=True)]

    def last(self) -> Place | None:
        """The newest one."""
        return Place(*self._numbers[-3:]) if self._numbers else None


class Parts:
    """Places of the parts of one checkpoint."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self.bytes_in: Counter[int] = Counter()
        """Bytes by segment."""

    def add(self, place: Place) -> None:
        """Add the next part."""
        self.places.append(place)
        self.bytes_in[place.segment] += place.num_bytes


class Index:
    """Live records: keyed ones by key, the last checkpoint, the turns since its beginning."""

    def __init__(self) -> None:
        self.checkpoint = Parts()
        self.incomplete: Place | None = None
        """End of the last checkpoint, if not all its parts were there: a later one replaced it and
        they went with their segments, or they are lost."""
        self._unfinished = Parts()
        """Of the checkpoint that is being made."""
        self._first = 0
        self._replaced = Turns()
        """Turns that it will replace."""
        self._turns = Turns()
        """Turns since; all of them, while none is being made."""
        self._groups: dict[int, dict[Key, Place]] = {}
        self._keys: dict[int, dict[Key, None]] = {}
        """Live keys by segment, in the order in which they were written."""
        self._keyed_bytes: dict[int, int] = {}
        self._num_keyed_bytes = 0

    # --- reading ----------------------------------------------------------------------------------

    @property
    def live_bytes(self) -> int:
        """Bytes of all records that are needed."""
        return self._num_keyed_bytes + sum(each.total() for each in self._history())

    @property
    def turns(self) -> list[Place]:
        """Turns since the last checkpoint began, in order."""
        return [*self._replaced.places(), *self._turns.places()]

    @property
    def last_turn(self) -> Place | None:
        """The newest of them."""
        return self._turns.last() or self._replaced.last()

    @property
    def groups(self) -> dict[int, dict[Key, Place]]:
        """Live keyed records by group; not to be changed."""
        return self._groups

    def place_of(self, key: Key) -> Place | None:
        """Where the record of ``key`` lies."""
        return self._groups.get(key[0], {}).get(key)

    def keys_in(self, segment: int) -> list[Key]:
        """Live keys in a segment, oldest first."""
        return list(self._keys.get(segment, ()))

    def keyed_bytes_in(self, segment: int) -> int:
        """Bytes of the live keyed records in a segment."""
        return self._keyed_bytes.get(segment, 0)

    def has_history(self, segment: int) -> bool:
        """Whether a needed turn or part of a checkpoint, finished or not, lies in a segment."""
        return any(segment in each for each in self._history())

    def _history(self) -> tuple[Counter[int], ...]:
        """Bytes by segment of all that a restart replays, and of what will take its place."""
        parts = (self.checkpoint.bytes_in, self._unfinished.bytes_in)
        return (*parts, self._replaced.bytes_in, self._turns.bytes_in)

    # --- changing ---------------------------------------------------------------------------------

    def put(self, key: Key, place: Place) -> None:
        """``key`` lies at ``place``, wherever it was before."""
        segment, _, num_bytes = place
        group = self._groups.setdefault(key[0], {})
        before = group.get(key)
        if before is not None:
            self._forget(key, before)
        group[key] = place
        self._num_keyed_bytes += num_bytes
        self._keys.setdefault(segment, {})[key] = None
        self._keyed_bytes[segment] = self._keyed_bytes.get(segment, 0) + num_bytes

    def drop(self, group: int) -> None:
        """Forget all keys of a group."""
        for key, place in self._groups.pop(group, {}).items():
            self._forget(key, place)

    def _forget(self, key: Key, place: Place) -> None:
        keys = self._keys[place.segment]
        del keys[key]
        self._num_keyed_bytes -= place.num_bytes
        self._keyed_bytes[place.segment] -= place.num_bytes
        if not keys:
            del self._keys[place.segment], self._keyed_bytes[place.segment]

    def add_turn(self, place: Place) -> None:
        """A turn whose contents matter."""
        self._turns.add(place)

    def add_part(self, part: Part, place: Place) -> None:
        """A part of a checkpoint; part 0 begins one and ends what was made of another.

        A part that does not follow is left from a checkpoint that a later one has replaced.
        """
        if part.number == 0:
            self.give_up_checkpoint()
            self._replaced, self._turns = self._turns, Turns()
            self._first = part.first
        if self._follows(part):
            self._unfinished.add(place)

    def set_checkpoint(self, part: Part, place: Place) -> None:
        """The last part: the turns before part 0 and the former checkpoint count no more."""
        if part.number and not self._follows(part):
            self.incomplete = place
            return
        self.add_part(part, place)
        self.checkpoint, self._unfinished = self._unfinished, Parts()
        self._replaced, self.incomplete = Turns(), None

    def give_up_checkpoint(self) -> None:
        """The checkpoint that was being made will not be finished."""
        self._replaced.add_all(self._turns)
        self._unfinished, self._turns, self._replaced = Parts(), self._replaced, Turns()

    def _follows(self, part: Part) -> bool:
        return (self._first, len(self._unfinished.places)) == part
