"""The ledger of a simulated broker: checked after every event, and its history kept."""

from __future__ import annotations

from collections.abc import Callable

from broker.events import AnyEvent
from broker.ledger import Ledger
from tests.simulation.books import Books
from tests.simulation.trace import Violation


class History:
    """Every event of all lives of a broker and when it happened, but for those that were lost."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.events: list[AnyEvent] = []
        self._times_s: list[float] = []
        self._clock = clock

    def add(self, event: AnyEvent) -> None:
        """An event was applied."""
        self.events.append(event)
        self._times_s.append(self._clock())

    def cut(self, num_kept: int) -> list[tuple[float, AnyEvent]]:
        """Only so many survive; returns the others, each with its time."""
        lost = list(zip(self._times_s[num_kept:], self.events[num_kept:], strict=True))
        del self.events[num_kept:], self._times_s[num_kept:]
        return lost


class CheckedLedger(Ledger):
    """A ledger that checks conservation after every event and shows it to the oracle."""

    books: Books | None = None
    history: History | None = None
    """Takes every event, if it is there."""

    def apply(self, event: AnyEvent) -> None:
        """See :meth:`Ledger.apply`."""
        super().apply(event)
        counts = self.counts
        leased = sum(group.is_leased for group in self.groups.values())
        counted = (counts.imbalance, counts.leased, counts.pending)
        if counted != (0, leased, len(self.groups) - leased):
            raise Violation("G2", f"{counts} after {event}")
        if self.history is not None:
            self.history.add(event)
        if self.books is not None:
            self.books.event_happened(self, event)
