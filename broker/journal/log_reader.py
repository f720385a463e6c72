"""What an open log holds, read from what is staged and from the segments."""

from __future__ import annotations

from collections.abc import Iterator

from broker.journal.index import Index, Place
from broker.journal.records import (
    KEY_BYTES,
    Key,
    body_of,
    decode_drops,
    decode_part,
    decode_record_header,
    is_body_sound,
)
from broker.journal.scan import DamagedError
from broker.journal.segments import Segments
from broker.journal.staging import Staging


class LogReader:
    """Reads records; every one of them is checked against its checksums."""

    def __init__(self, segments: Segments, index: Index, staging: Staging, salted: int) -> None:
        self._segments = segments
        self._index = index
        self._staging = staging
        self._salted = salted

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
