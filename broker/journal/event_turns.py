"""The events of a turn of the server as one record of a log, and how they are read again."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from broker import events
from broker.events import AnyEvent
from broker.journal.log import Log
from broker.ledger_state import LedgerState
from broker.snapshots import num_events_of, unpack_snapshot
from common.codec import Buffer
from common.errors import JournalError

ALWAYS_DURABLE: frozenset[type[AnyEvent]] = frozenset(
    (
        events.HandedOver,
        events.Stepped,
        events.Trained,
        events.Collected,
        events.Evicted,
        events.Announced,
        events.Resumed,
        events.ReferenceSet,
        events.Sealed,
    )
)
"""What a consumer is told of groups, steps, checkpoints and weights: never relaxed."""

_TURN = struct.Struct("<QI")
"""Before the events of a turn: number of the first, how many."""

_decoder = msgspec.msgpack.Decoder(list[AnyEvent])
_encoder = msgspec.msgpack.Encoder()


def pack_turn(first: int, happened: Sequence[AnyEvent]) -> bytes:
    """The record of these events, of which the first has the number ``first``."""
    return _TURN.pack(first, len(happened)) + _encoder.encode(happened)


def unpack_turn(turn: Buffer) -> tuple[int, list[AnyEvent]]:
    """Number of the first event of a turn, and its events; raises ``msgspec.DecodeError``."""
    first, _ = _TURN.unpack_from(turn)
    return first, _decoder.decode(memoryview(turn)[_TURN.size :])


def count_events(log: Log) -> tuple[int, int]:
    """Number of the next event, and of those since the last snapshot."""
    first, turn = next(log.checkpointed(), None), log.last_turn()
    start = 0 if first is None else num_events_of(first)
    if turn is None:
        return start, 0
    newest, number = _TURN.unpack_from(turn)
    return newest + number, newest + number - start


def load(log: Log, directory: Path) -> tuple[LedgerState | None, Iterator[AnyEvent]]:
    """The last snapshot and the events after it; raises :class:`JournalError`, also while read."""
    if not log.checkpoint_bytes:
        return None, _events_from(0, log, directory)
    try:
        number, state = unpack_snapshot(log.checkpointed())
    except msgspec.DecodeError as error:
        raise _unreadable(directory, f"the snapshot: {error}") from None
    return state, _events_from(number, log, directory)


def _events_from(expected: int, log: Log, directory: Path) -> Iterator[AnyEvent]:
    for turn in log.turns():
        try:
            first, happened = unpack_turn(turn)
        except msgspec.DecodeError as error:
            raise _unreadable(directory, f"the events from {expected} on: {error}") from None
        if first != expected:
            raise _unreadable(directory, f"event {first} where event {expected} belongs")
        yield from happened
        expected += len(happened)


def _unreadable(directory: Path, what: str) -> JournalError:
    return JournalError(
        f"journal {directory}: cannot be read: {what} (use the headrace version that wrote it)"
    )
