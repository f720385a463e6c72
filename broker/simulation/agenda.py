"""The virtual clock: what happens next, in order of time and then of planning."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Agenda:
    """Planned actions; :meth:`step` moves the clock to the next one and does it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._planned: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._num_planned = 0

    def after(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        """Plan ``action(*args)`` for ``delay_s`` from now."""
        self._num_planned += 1
        heapq.heappush(self._planned, (self.now_s + delay_s, self._num_planned, action, args))

    def step(self) -> bool:
        """Do the next action; False when nothing is planned."""
        if not self._planned:
            return False
        self.now_s, _, action, args = heapq.heappop(self._planned)
        action(*args)
        return True
