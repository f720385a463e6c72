"""Equal inputs get equal answers: one computation, however often an input is asked about.

Packed differently, the same tokens give scores that differ in the last bits. Normalised over a
group of otherwise equal rewards, such bits would become an advantage.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

CAPACITY = 65536

_Answer = TypeVar("_Answer")


class AnswerMemory(Generic[_Answer]):
    """The answers to recent inputs; a failed computation is forgotten."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._known: OrderedDict[Hashable, asyncio.Future[_Answer]] = OrderedDict()

    async def get(
        self, key: Hashable, compute: Callable[[], Coroutine[Any, Any, _Answer]]
    ) -> _Answer:
        """The answer to ``key``, computed by the first who asks; the others wait for it."""
        future = self._known.get(key)
        if future is None:
            future = asyncio.ensure_future(compute())
            self._known[key] = future
            future.add_done_callback(lambda done: self._settle(key, done))
        self._known.move_to_end(key)
        return await asyncio.shield(future)

    def _settle(self, key: Hashable, done: asyncio.Future[_Answer]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._known.pop(key, None)
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)
