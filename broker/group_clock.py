"""How long groups have been worked on: the clock behind ``broker.max_group_s``. Pure.

The time is that of the broker's monotonic clock and is passed in. It is not journaled: after a
restart the groups that were being worked on count from the restart.
"""

from __future__ import annotations

from collections.abc import Iterable


class GroupClock:
    """Groups by the time of their first lease."""

    def __init__(self) -> None:
        self._started_at_s: dict[int, float] = {}  # in order of time, for time only goes forward

    def __len__(self) -> int:
        return len(self._started_at_s)

    def start(self, group_id: int, now_s: float) -> None:
        """``group_id`` is leased; only the first time counts."""
        self._started_at_s.setdefault(group_id, now_s)

    def stop(self, group_ids: Iterable[int]) -> None:
        """These groups have ended."""
        for group_id in group_ids:
            self._started_at_s.pop(group_id, None)

    def take_overdue(self, now_s: float, limit_s: float) -> list[int]:
        """Stop and return the groups that were started at least ``limit_s`` ago."""
        overdue = []
        for group_id, started_at_s in self._started_at_s.items():
            if now_s - started_at_s < limit_s:
                break
            overdue.append(group_id)
        self.stop(overdue)
        return overdue
