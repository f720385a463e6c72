"""Which sequence goes into which row of a packed forward: pure planning on lengths alone."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows of ``row_length`` places that are computed together; members stand side by side."""

    row_length: int
    rows: tuple[tuple[int, ...], ...]
    """Positions in the list of lengths that was planned."""

    @property
    def num_places(self) -> int:
        """Rows times length, padding included."""
        return self.row_length * len(self.rows)


def pack_rows(
    lengths: Sequence[int],
    *,
    row_tokens: int,
    budget_tokens: int,
    hidden_attention_ratio: float = math.inf,
) -> Iterator[PackedRows]:
    """Plan batches of at most ``budget_tokens`` places over ``lengths``, which are longest first.

    Best-fit decreasing: the longest sequence left opens a batch, then each next one goes into the
    fullest row that has room. Rows of one batch are therefore of like lengths. A sequence longer
    than the budget gets a batch of its own.

    Rows have ``row_tokens`` places (more where a sequence has), or with 0 as many as make a token
    cheapest: long rows leave few places empty, but attention that computes what it hides costs the
    square of a row. ``hidden_attention_ratio`` is what a place costs more for each place of its
    row: 0 where the kernel skips what is hidden; ``inf`` makes rows as long as their longest
    sequence.
    """
    waiting = list(range(len(lengths)))
    while waiting:
        longest = max(row_tokens, lengths[waiting[0]])
        if row_tokens or math.isinf(hidden_attention_ratio):
            rows, waiting = _fill_rows(lengths, waiting, longest, budget_tokens)
            yield PackedRows(longest, rows)
        else:
            batch, waiting = _cheapest_batch(
                lengths, waiting, budget_tokens, hidden_attention_ratio
            )
            yield batch


def _cheapest_batch(
    lengths: Sequence[int], waiting: list[int], budget_tokens: int, hidden_attention_ratio: float
) -> tuple[PackedRows, list[int]]:
    """The batch, of those of a few row lengths, whose tokens cost least, and what is left."""
    batches = []
    longest = lengths[waiting[0]]
    shortest = longest if hidden_attention_ratio else max(longest, budget_tokens)
    for row_length in _row_lengths(shortest, budget_tokens):
        rows, left = _fill_rows(lengths, waiting, row_length, budget_tokens)
        fills = [sum(lengths[item] for item in row) for row in rows]
        batch = PackedRows(max(fills), rows)
        place_cost = 1 + hidden_attention_ratio * batch.row_length
        batches.append((batch.num_places * place_cost / sum(fills), batch, left))
    _, batch, left = min(batches, key=lambda found: found[0])
    return batch, left


def _row_lengths(shortest: int, budget_tokens: int) -> Iterator[int]:
    """From ``shortest`` on, each for half as many rows of a full batch as the one before."""
    yield shortest
    num_rows = budget_tokens // shortest
    while num_rows:
        if budget_tokens // num_rows > shortest:
            yield budget_tokens // num_rows
        num_rows //= 2


def _fill_rows(
    lengths: Sequence[int], waiting: Sequence[int], row_length: int, budget_tokens: int
) -> tuple[tuple[tuple[int, ...], ...], list[int]]:
    """Rows filled best-fit, as many as the budget has, and what found no room."""
    num_rows = max(1, budget_tokens // row_length)
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (free places, row), sorted: the first that fits is the best
    left = []
    for item in waiting:
        place = bisect.bisect_left(rooms, (lengths[item], -1))
        if place < len(rooms):
            room, row = rooms.pop(place)
        elif len(rows) < num_rows:
            room, row = row_length, len(rows)
            rows.append([])
        else:
            left.append(item)
            continue
        rows[row].append(item)
        bisect.insort(rooms, (room - lengths[item], row))
    return tuple(tuple(row) for row in rows), left
