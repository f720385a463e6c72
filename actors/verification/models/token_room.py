"""A bound on tokens in memory: what does not fit waits its turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class TokenRoom:
    """Room for ``capacity`` tokens, given first come, first served.

    One holder with more than ``capacity`` is let in alone, so that nothing waits for ever.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()
        self.num_tokens = 0
        """Tokens of all who are in."""

    @asynccontextmanager
    async def take(self, tokens: int) -> AsyncIterator[None]:
        """Hold room for ``tokens`` inside the block."""
        async with self._turn:
            while self.num_tokens and self.num_tokens + tokens > self._capacity:
                self._freed.clear()
                await self._freed.wait()
            self.num_tokens += tokens
        try:
            yield
        finally:
            self.num_tokens -= tokens
            self._freed.set()
