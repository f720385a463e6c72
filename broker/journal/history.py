"""Events and snapshots of a damaged journal, put together as far as nothing between is missing."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.events import AnyEvent
from broker.journal.inspection import Entry
from broker.journal.records import Part
from broker.ledger_state import LedgerState
from broker.snapshots import add_groups


@dataclass(slots=True)
class _Begun:
    """A snapshot, as far as no part is missing."""

    next_part: Part
    num_events: int
    state: LedgerState
    turns: list[Entry] = field(default_factory=list)
    """Since its first part."""


@dataclass(slots=True)
class History:
    """Events in order, as far as none is missing."""

    state: LedgerState | None = None
    events: list[AnyEvent] = field(default_factory=list)
    next_event: int = 0
    lost_from: int | None = None
    """First event that is missing; what comes after it is in ``unapplied``."""
    unapplied: list[AnyEvent] = field(default_factory=list)
    _begun: _Begun | None = None

    def add(self, entry: Entry) -> bool:
        """Take a turn or a part of a snapshot; returns whether its drops count."""
        if entry.part is not None:
            self._add_part(entry, entry.part)
        else:
            self._add_turn(entry)
            if self._begun is not None:
                self._begun.turns.append(entry)
        return self.lost_from is None

    def _add_turn(self, entry: Entry) -> None:
        if entry.events and self.lost_from is None and entry.first_event != self.next_event:
            self.lost_from = self.next_event
        if self.lost_from is not None:
            self.unapplied.extend(entry.events)
        else:
            self.events.extend(entry.events)
            self.next_event += len(entry.events)

    def _add_part(self, entry: Entry, part: Part) -> None:
        if entry.snapshot is not None:
            self._begun = _Begun(part, entry.first_event, entry.snapshot)
        if self._begun is not None and self._begun.next_part == part:
            self._begun.next_part = part._replace(number=part.number + 1)
            add_groups(self._begun.state, entry.groups)
            if entry.is_last:
                self._go_on_from(self._begun)

    def _go_on_from(self, snapshot: _Begun) -> None:
        """From one that is whole, with the turns since it began."""
        self.state, self.events, self.unapplied = snapshot.state, [], []
        self.next_event, self.lost_from, self._begun = snapshot.num_events, None, None
        for turn in snapshot.turns:
            self._add_turn(turn)
