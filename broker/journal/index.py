"""What of a log is still needed, and in which segment it lies. Pure."""

from __future__ import annotations

from typing import NamedTuple

from broker.journal.records import Key


class Place(NamedTuple):
    """Where a record lies."""

    segment: int
    offset: int
    num_bytes: int


class Index:
    """Live records: keyed ones by key, the last checkpoint, the turns after it."""

    def __init__(self) -> None:
        self.turns: list[Place] = []
        self.checkpoint: Place | None = None
        self._groups: dict[int, dict[Key, Place]] = {}
        self._keys: dict[int, dict[Key, None]] = {}
        """Live keys by segment, in the order in which they were written."""
        self._keyed_bytes: dict[int, int] = {}
        self._num_keyed_bytes = 0
        self._history_bytes: dict[int, int] = {}
        """Bytes of the checkpoint and of needed turns, by segment."""

    # --- reading ----------------------------------------------------------------------------------

    @property
    def live_bytes(self) -> int:
        """Bytes of all records that are needed."""
        return self._num_keyed_bytes + sum(self._history_bytes.values())

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
        """Whether the checkpoint or a needed turn lies in a segment."""
        return segment in self._history_bytes

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
        self.turns.append(place)
        self._count_history(place)

    def set_checkpoint(self, place: Place) -> None:
        """A checkpoint: neither the turns before it nor the last one are needed."""
        self.turns.clear()
        self._history_bytes.clear()
        self.checkpoint = place
        self._count_history(place)

    def _count_history(self, place: Place) -> None:
        before = self._history_bytes.get(place.segment, 0)
        self._history_bytes[place.segment] = before + place.num_bytes
