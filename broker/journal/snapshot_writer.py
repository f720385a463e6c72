"""Writes snapshots of the ledger into a log, a slice at a time."""

from __future__ import annotations

from broker.journal.log import Log
from broker.ledger_state import LedgerState
from broker.snapshots import DEFAULT_PACE, Snapshot, SnapshotPace


class SnapshotWriter:
    """At most one snapshot under way; what it replaces is needed until its last part is written."""

    def __init__(self, log: Log, pace: SnapshotPace = DEFAULT_PACE) -> None:
        self._log = log
        self._pace = pace
        self.under_way: Snapshot | None = None
        self._usual_bytes = log.checkpoint_bytes
        """Of the last one."""
        self._staged_bytes = 0
        """Of the one under way."""

    def is_due(self, state: LedgerState, num_events: int) -> bool:
        """Whether one should begin: enough events have gathered, or they hold back old segments."""
        if self.under_way is not None or not self.has_room_for_another:
            return False
        return num_events >= self._pace.interval(state) or self._log.wants_checkpoint

    @property
    def has_room_for_another(self) -> bool:
        """Whether a whole one is sure to be written, with as much room left for turns."""
        return self._log.turn_room >= 2 * self._usual_bytes

    @property
    def has_room_for_rest(self) -> bool:
        """The same of what is left of the one under way."""
        return self._log.turn_room >= 2 * (self._usual_bytes - self._staged_bytes)

    def begin(self, number: int, state: LedgerState) -> None:
        """Begin one of ``state``, which ``number`` events led to, and stage its first part.

        Events behind it in the log are not part of it. One that was under way never counts.
        """
        self._log.begin_checkpoint()
        self.under_way, self._staged_bytes = Snapshot(number, state), 0
        self.go_on()

    def go_on(self) -> None:
        """Stage the next part of the one under way."""
        if self.under_way is None:
            return
        part = self.under_way.next_part(self._pace)
        self._staged_bytes += len(part)
        if self.under_way.is_done:
            self._log.checkpoint(part)
            self.under_way, self._usual_bytes = None, self._staged_bytes
        else:
            self._log.add_part(part)

    def finish(self) -> None:
        """Stage all that is left of it."""
        while self.under_way is not None:
            self.go_on()
