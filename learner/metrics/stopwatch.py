"""Where the time of a step goes, by stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from common.clock import Clock, MonotonicClock


@dataclass(slots=True)
class Stopwatch:
    """Seconds by stage since the last :meth:`take`."""

    clock: Clock = field(default_factory=MonotonicClock)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the block's time under ``name``."""
        start = self.clock.now_s()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self.clock.now_s() - start

    def take(self) -> dict[str, float]:
        """Seconds by stage; starts anew."""
        taken, self.seconds = self.seconds, {}
        return taken
