"""Liveness: a run in which nothing moves ends with a line that says who waits for whom. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from broker import events
from broker.events import AnyEvent
from common.types import Role

_PROGRESS = (
    events.Generated,
    events.Verified,
    events.HandedOver,
    events.Stepped,
    events.Trained,
    events.Collected,
    events.Announced,
    events.Resumed,
    events.CollectorStarted,
)


class Watchdog:
    """Gives up after ``no_progress_s`` with all roles present, or ``max_absence_s`` without one.

    Leasing the same work again and again is not progress.
    """

    def __init__(
        self, roles: Collection[Role], *, no_progress_s: float, max_absence_s: float, now_s: float
    ) -> None:
        self._roles = roles
        self._no_progress_s = no_progress_s
        self._max_absence_s = max_absence_s
        self._moved_at_s = now_s
        self._complete_at_s = now_s

    def observe(self, happened: Iterable[AnyEvent], now_s: float) -> None:
        """Note the events of a turn."""
        if any(isinstance(event, _PROGRESS) for event in happened):
            self._moved_at_s = now_s

    def rest(self, now_s: float) -> None:
        """Nothing is expected to move now: the run has ended."""
        self._moved_at_s = self._complete_at_s = now_s

    def complaint(self, present: Collection[Role], now_s: float) -> str | None:
        """Why the run should stop, or None. The clock of progress stands while a role is away."""
        absent = [role.value for role in self._roles if role not in present]
        if absent:
            self._moved_at_s = now_s
            away_s = now_s - self._complete_at_s
            if away_s < self._max_absence_s:
                return None
            return (
                f"no {' and no '.join(absent)} for {away_s:.0f} s "
                "(start it again, or raise broker.max_absence_s)"
            )
        self._complete_at_s = now_s
        still_s = now_s - self._moved_at_s
        if still_s < self._no_progress_s:
            return None
        return f"all roles are present but nothing has moved for {still_s:.0f} s"
