"""Snapshots of the ledger, taken a slice a turn while the ledger goes on. Pure.

A snapshot is the state after one certain event, in parts: the first holds all but the groups, each
later one some groups. What an event is about to change is copied before, if no part holds it yet,
so that all parts together are the state as it was at the beginning.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import msgspec

from broker.events import AnyEvent, Generated
from broker.groups import GroupRecord
from broker.ledger_state import LedgerState
from common.codec import Buffer

_COUNT = struct.Struct("<Q")
"""Before the first part: how many events led to the snapshot."""
_ARRAY = struct.Struct(">BI")
"""What msgpack begins an array with: its tag, the number of items."""
_ARRAY_TAG = 0xDD

_encoder = msgspec.msgpack.Encoder()
_state_decoder = msgspec.msgpack.Decoder(LedgerState)
_groups_decoder = msgspec.msgpack.Decoder(list[GroupRecord])


@dataclass(frozen=True, slots=True)
class SnapshotPace:
    """How often snapshots begin, and how much of one a turn takes.

    Encoding costs up to 1.5 us a rollout and replaying an event 6 us. With 1.5 events a rollout the
    former stays under 1 us an event; the latter adds 9 us a rollout to a restart, as much as the
    reading of 5 kB of arrays.
    """

    min_events: int = 20_000
    events_per_rollout: float = 1.5
    slice_rollouts: int = 256
    slice_bytes: int = 128 << 10

    def interval(self, state: LedgerState) -> float:
        """Events between the beginnings of two snapshots, with so many groups live."""
        return max(self.min_events, self.events_per_rollout * _num_rollouts(state))


DEFAULT_PACE = SnapshotPace()


def _num_rollouts(state: LedgerState) -> int:
    """Indices of all live groups, as if all had as many as the newest; O(1)."""
    newest = next(reversed(state.groups.values()), None)
    return 0 if newest is None else len(state.groups) * len(newest.indices)


_NAMES_ONE = frozenset(kind for kind in get_args(AnyEvent) if "group_id" in kind.__struct_fields__)
"""Kinds of event that change one group, which they name."""


def groups_of(event: AnyEvent) -> Sequence[int]:
    """Groups that ``event`` changes; of those that it ends, it may leave out any."""
    if type(event) in _NAMES_ONE:
        return (event.group_id,)  # type: ignore[union-attr]  # its fields are in the table
    if isinstance(event, Generated):
        return (event.rollout.rollout_id.group_id,)
    named: Sequence[int] = getattr(event, "group_ids", ())
    return named


class Snapshot:
    """One snapshot under way."""

    def __init__(self, number: int, state: LedgerState) -> None:
        """Begin a snapshot of ``state``, which ``number`` events led to."""
        self._live = state.groups
        self._waiting = dict(state.groups)
        """What no part holds yet, as it was; groups that have ended since are still here."""
        self._ids = iter(list(self._waiting))
        rest = msgspec.structs.replace(state, groups={})
        self._first: bytes | None = _COUNT.pack(number) + _encoder.encode(rest)

    @property
    def is_done(self) -> bool:
        """Whether all parts have been taken."""
        return self._first is None and not self._waiting

    def keep(self, event: AnyEvent) -> None:
        """Copy what ``event`` is about to change; call it before the event is applied.

        Groups that have left the ledger change no more and need no copy.
        """
        for group_id in groups_of(event):
            group = self._waiting.get(group_id)
            if group is not None and group is self._live.get(group_id):
                self._waiting[group_id] = _copied(group)

    def next_part(self, pace: SnapshotPace) -> bytes:
        """The next part: as many groups as a turn may take, at least one."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        encoded: list[bytes] = []
        num_rollouts = num_bytes = 0
        for group_id in self._ids:
            group = self._waiting.pop(group_id)
            encoded.append(_encoder.encode(group))
            num_rollouts += len(group.indices)
            num_bytes += len(encoded[-1])
            if num_rollouts >= pace.slice_rollouts or num_bytes >= pace.slice_bytes:
                break
        return b"".join((_ARRAY.pack(_ARRAY_TAG, len(encoded)), *encoded))


def _copied(group: GroupRecord) -> GroupRecord:
    """A copy that shares nothing that an event can change."""
    return msgspec.structs.replace(
        group,
        indices=[msgspec.structs.replace(item) for item in group.indices],
        versions=dict(group.versions),
        references=dict(group.references),
    )


# --- reading --------------------------------------------------------------------------------------


def num_events_of(first: Buffer) -> int:
    """Number of events that led to a snapshot, from its first part."""
    return int(_COUNT.unpack_from(first)[0])


def unpack_first(first: Buffer) -> tuple[int, LedgerState]:
    """The same and the state without groups; raises ``msgspec.DecodeError``."""
    return num_events_of(first), _state_decoder.decode(memoryview(first)[_COUNT.size :])


def unpack_groups(part: Buffer) -> list[GroupRecord]:
    """The groups in a later part; raises ``msgspec.DecodeError``."""
    return _groups_decoder.decode(part)


def add_groups(state: LedgerState, groups: Iterable[GroupRecord]) -> None:
    """Put the groups of a part into the state of the first one."""
    state.groups.update((group.group_id, group) for group in groups)


def unpack_snapshot(parts: Iterable[Buffer]) -> tuple[int, LedgerState]:
    """Number of events that led to a snapshot, and it; raises ``msgspec.DecodeError``."""
    rest = iter(parts)
    number, state = unpack_first(next(rest))
    for part in rest:
        add_groups(state, unpack_groups(part))
    return number, state
