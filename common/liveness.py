"""Whether the other end still answers, and when to try again. Pure: the time is passed in.

A peer that is asked something trivial once it has been silent for a heartbeat interval, and says
nothing for as long again and half as long, is frozen or gone, whatever its connection looks like.
"""

from __future__ import annotations

import enum
import random

ASK_AFTER = 1.0
LOST_AFTER = 2.5
"""Heartbeat intervals of silence; with :data:`CHECKS` a loss is noticed within 3 intervals."""
CHECKS = 4
"""Looks an interval."""
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


class Finding(enum.Enum):
    """What a look at the silence of the other end says."""

    FINE = "fine"
    ASK = "ask"
    LOST = "lost"


class Liveness:
    """Silence of one peer.

    Time in which nobody looked counts for little: then it was this process that stood still, and
    what the peer said may still be unread.
    """

    def __init__(self, interval_s: float, now_s: float) -> None:
        self.interval_s = interval_s
        self.silent_s = 0.0
        self._looked_at_s = now_s
        self._asked = False

    @property
    def check_s(self) -> float:
        """How often to look."""
        return self.interval_s / CHECKS

    def heard(self) -> None:
        """The peer said something."""
        self.silent_s = 0.0
        self._asked = False

    def look(self, now_s: float) -> Finding:
        """Count the time since the last look; ASK is said once a silence."""
        self.silent_s += min(now_s - self._looked_at_s, 1.5 * self.check_s)
        self._looked_at_s = now_s
        if self.silent_s >= LOST_AFTER * self.interval_s:
            return Finding.LOST
        if self.silent_s < ASK_AFTER * self.interval_s or self._asked:
            return Finding.FINE
        self._asked = True
        return Finding.ASK


class Backoff:
    """Pauses between attempts: random, so that a fleet does not come back as one, and growing."""

    def __init__(self, seeded: random.Random) -> None:
        self._random = seeded
        self._longest_s = _FIRST_PAUSE_S

    def pause_s(self) -> float:
        """Seconds to wait before the next attempt."""
        pause_s = self._random.uniform(0.0, self._longest_s)
        self._longest_s = min(2.0 * self._longest_s, _LONGEST_PAUSE_S)
        return pause_s

    def reset(self) -> None:
        """An attempt succeeded."""
        self._longest_s = _FIRST_PAUSE_S
