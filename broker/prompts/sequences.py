"""The prompts of one set in their order. Pure but for the reader that is passed in.

A cursor counts places of a sequence, so the same seed gives the same prompt at the same cursor in
every process.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from broker.prompts.state import SetState
from common.types import Prompt


class PromptSequence(Protocol):
    """The prompts of one set."""

    def seek(self, state: SetState) -> int | None:
        """The cursor of the next prompt to draw, or None when the set is used up."""
        ...

    def at(self, cursor: int) -> tuple[Prompt, int | None]:
        """The prompt at ``cursor`` and its position in the list, None where nothing repeats."""
        ...


class EpochSequence:
    """A finite list, each epoch in a seeded order of its own; retired prompts are passed by."""

    def __init__(
        self,
        size: int,
        read: Callable[[int], Prompt],
        *,
        order_seed: str | None,
        epochs: int = 0,
        limit: int = 0,
    ) -> None:
        """``order_seed`` None keeps the order of the list; 0 ``epochs`` or ``limit`` is no end."""
        self._size = size
        self._read = read
        self._order_seed = order_seed
        self._end = epochs * size if epochs else None
        self._limit = limit
        self._order = lru_cache(maxsize=2)(self._order_of)

    def seek(self, state: SetState) -> int | None:
        """See :class:`PromptSequence`."""
        if (self._limit and state.num_drawn >= self._limit) or state.num_retired >= self._size:
            return None
        cursor = state.cursor
        while self._end is None or cursor < self._end:
            if not state.num_retired or not state.is_retired(self._position(cursor)):
                return cursor
            cursor += 1
        return None

    def at(self, cursor: int) -> tuple[Prompt, int | None]:
        """See :class:`PromptSequence`."""
        position = self._position(cursor)
        return self._read(position), position

    def _position(self, cursor: int) -> int:
        epoch, place = divmod(cursor, self._size)
        return place if self._order_seed is None else self._order(epoch)[place]

    def _order_of(self, epoch: int) -> array[int]:
        order = list(range(self._size))
        random.Random(f"prompt-order/{self._order_seed}/{epoch}").shuffle(order)
        return array("I", order)


class StreamSequence:
    """An endless generator; no prompt comes back, so none has a position."""

    def __init__(self, prompt_at: Callable[[int], Prompt], *, limit: int = 0) -> None:
        self._prompt_at = prompt_at
        self._limit = limit

    def seek(self, state: SetState) -> int | None:
        """See :class:`PromptSequence`."""
        return None if self._limit and state.num_drawn >= self._limit else state.cursor

    def at(self, cursor: int) -> tuple[Prompt, int | None]:
        """See :class:`PromptSequence`."""
        return self._prompt_at(cursor), None
