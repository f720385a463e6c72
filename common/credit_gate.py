"""A producer's end of byte credit: arrays leave only against credit that the broker granted.

The broker's end is ``common.credit``. Waiting for credit has no deadline of its own: a broker that
is alive and full answers each reservation with nothing, and the producer waits on and says for how
long; one that does not answer ends the wait through the deadline of that reservation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from common.codec import Buffer
from common.messages import PutRollouts, Request, SubmitRollout, SubmitVerdict

MAX_RESERVATION_BYTES = 8 << 20
"""Most bytes asked for at once on behalf of everybody who waits here."""

Reserve = Callable[[int, int], Awaitable[int]]
"""Ask the broker for (least, most) bytes; returns what it granted, 0 when the wait ran out."""


class CreditGate:
    """First come, first served: ``take`` returns when so many bytes may be sent."""

    def __init__(self, reserve: Reserve, clock: Callable[[], float]) -> None:
        self._reserve = reserve
        self._clock = clock
        self._turn = asyncio.Lock()
        self._balance = 0
        self._wanted = 0
        self._blocked_since_s: float | None = None
        self._blocked_total_s = 0.0

    def reset(self, num_bytes: int) -> None:
        """The connection is new: credit of the former one is void, this is the first."""
        self._balance = num_bytes

    def add(self, num_bytes: int) -> None:
        """The broker gave credit back with an acknowledgement."""
        self._balance += num_bytes

    @property
    def blocked_for_s(self) -> float:
        """How long the front of the queue has been waiting for credit; 0 when nobody waits."""
        since_s = self._blocked_since_s
        return 0.0 if since_s is None else self._clock() - since_s

    @property
    def blocked_total_s(self) -> float:
        """Seconds spent without credit, over the life of this gate."""
        return self._blocked_total_s + self.blocked_for_s

    async def take(self, num_bytes: int) -> None:
        """Wait until ``num_bytes`` may be sent, and use up so much credit."""
        self._wanted += num_bytes
        try:
            async with self._turn:
                await self._fill(num_bytes)
                self._balance -= num_bytes
        finally:
            self._wanted -= num_bytes

    async def _fill(self, num_bytes: int) -> None:
        """Reserve until the balance covers ``num_bytes``, ahead for those who wait behind."""
        if self._balance >= num_bytes:
            return
        self._blocked_since_s = self._clock()
        await asyncio.sleep(0)  # those who came in the same moment count as waiting, too
        try:
            while self._balance < num_bytes:
                least = num_bytes - self._balance
                most = max(least, min(self._wanted - self._balance, MAX_RESERVATION_BYTES))
                granted = await self._reserve(least, most)
                self._balance += granted  # read after the wait: acknowledgements add to it, too
        finally:
            self._blocked_total_s += self.blocked_for_s
            self._blocked_since_s = None


def bytes_on_credit(message: Request, frames: Sequence[Buffer]) -> int:
    """Bytes of arrays that need credit: those of rollouts, and of verdicts."""
    if not frames or not isinstance(message, SubmitRollout | PutRollouts | SubmitVerdict):
        return 0
    return sum(memoryview(frame).nbytes for frame in frames)
