"""Which sequence goes into which row of a packed forward: pure planning on lengths alone."""

from __future__ import annotations

import bisect
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
    lengths: Sequence[int], *, row_tokens: int, budget_tokens: int
) -> Iterator[PackedRows]:
    """Plan batches of at most ``budget_tokens`` places over ``lengths``, which are longest first.

    Best-fit decreasing: the longest sequence left opens a batch and sets its row length (at least
    ``row_tokens``), then each next one goes into the fullest row that has room. Rows of one batch
    are therefore of like lengths. A sequence longer than the budget gets a batch of its own.
    """
    waiting = list(range(len(lengths)))
    while waiting:
        row_length = max(row_tokens, lengths[waiting[0]])
        num_rows = max(1, budget_tokens // row_length)
        rows, waiting = _fill_rows(lengths, waiting, row_length, num_rows)
        yield PackedRows(row_length, rows)


def _fill_rows(
    lengths: Sequence[int], waiting: Sequence[int], row_length: int, num_rows: int
) -> tuple[tuple[tuple[int, ...], ...], list[int]]:
    """Rows filled best-fit, and what found no room."""
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
