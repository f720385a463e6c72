"""Which rollout goes to which rank, microbatch, row and place: pure planning, no tensors.

A layout is deterministic in its inputs and small enough for the step record, so that a replay adds
up the same numbers in the same order. Documents stand one after the other in a row, in the order
listed, so order and lengths say the offsets.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec

from common.types import Count, FiniteFloat, Record, RolloutId, SpanNumbers


class PlannedRollout(Record, frozen=True):
    """One rollout as every rank plans with it: sizes and the advantage, no tokens."""

    rollout_id: RolloutId
    num_prompt_tokens: Count
    num_completion_tokens: Count
    advantage: FiniteFloat
    lag: Count
    """Of the oldest token that is not masked."""
    masked_spans: SpanNumbers = ()
    """Version spans whose tokens carry no gradient."""
    num_masked_tokens: Count = 0
    store: Annotated[str, msgspec.Meta(max_length=128)] = ""
    """Payload server that holds its arrays, "" for the broker."""

    @property
    def num_trained_tokens(self) -> int:
        """Completion tokens that are not masked."""
        return self.num_completion_tokens - self.num_masked_tokens

    @property
    def length(self) -> int:
        """Prompt and completion tokens."""
        return self.num_prompt_tokens + self.num_completion_tokens


class MicrobatchLayout(Record, frozen=True):
    """One forward-backward: documents packed into ``len(rows)`` rows of ``row_length`` tokens."""

    row_length: Count
    rows: tuple[tuple[RolloutId, ...], ...]


class ChunkLayout(Record, frozen=True):
    """Some groups of a training batch that arrived together: microbatches of each rank."""

    group_ids: tuple[Count, ...]
    ranks: tuple[tuple[MicrobatchLayout, ...], ...]

    @property
    def num_microbatches(self) -> int:
        """Forward-backwards that every rank makes; a rank with fewer fills up with empty ones."""
        return max((len(rank) for rank in self.ranks), default=0)

    def without(self, group_ids: Iterable[int]) -> ChunkLayout:
        """The same layout with some groups cut out."""
        dropped = frozenset(group_ids)
        if not dropped:
            return self
        return ChunkLayout(
            group_ids=tuple(item for item in self.group_ids if item not in dropped),
            ranks=tuple(_cut(rank, dropped) for rank in self.ranks),
        )


def plan_chunk(
    group_ids: Sequence[int],
    rollouts: Sequence[PlannedRollout],
    *,
    num_ranks: int,
    row_tokens: int,
    microbatch_tokens: int,
) -> ChunkLayout:
    """Divide ``rollouts`` over ranks and pack each share into microbatches.

    ``row_tokens`` of 0 makes rows as long as the longest document of their microbatch.
    """
    shares = split_over_ranks(rollouts, num_ranks)
    return ChunkLayout(
        group_ids=tuple(group_ids),
        ranks=tuple(
            plan_microbatches(share, row_tokens=row_tokens, microbatch_tokens=microbatch_tokens)
            for share in shares
        ),
    )


def split_over_ranks(
    rollouts: Sequence[PlannedRollout], num_ranks: int
) -> list[list[PlannedRollout]]:
    """Longest first, each to the rank with the fewest tokens so far (ties: the lowest rank)."""
    shares: list[list[PlannedRollout]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for rollout in _longest_first(rollouts):
        rank = loads.index(min(loads))
        shares[rank].append(rollout)
        loads[rank] += rollout.length
    return shares


def plan_microbatches(
    rollouts: Sequence[PlannedRollout], *, row_tokens: int, microbatch_tokens: int
) -> tuple[MicrobatchLayout, ...]:
    """Pack documents into microbatches of at most ``microbatch_tokens`` places, padding included.

    Best-fit decreasing: the longest document left opens a microbatch and sets its row length, then
    each next one goes into the fullest row that has room. A document longer than the budget gets a
    microbatch of its own.
    """
    waiting = _longest_first(rollouts)
    microbatches = []
    while waiting:
        row_length = max(row_tokens, waiting[0].length)
        num_rows = max(1, microbatch_tokens // row_length)
        rows, waiting = _fill_rows(waiting, row_length, num_rows)
        microbatches.append(MicrobatchLayout(row_length=row_length, rows=rows))
    return tuple(microbatches)


def _longest_first(rollouts: Sequence[PlannedRollout]) -> list[PlannedRollout]:
    return sorted(rollouts, key=lambda rollout: (-rollout.length, rollout.rollout_id))


def _fill_rows(
    rollouts: Sequence[PlannedRollout], row_length: int, num_rows: int
) -> tuple[tuple[tuple[RolloutId, ...], ...], list[PlannedRollout]]:
    """Rows filled best-fit, and what found no room."""
    rows: list[list[RolloutId]] = []
    rooms: list[tuple[int, int]] = []  # (free places, row), sorted: the first that fits is the best
    left = []
    for rollout in rollouts:
        place = bisect.bisect_left(rooms, (rollout.length, -1))
        if place < len(rooms):
            room, row = rooms.pop(place)
        elif len(rows) < num_rows:
            room, row = row_length, len(rows)
            rows.append([])
        else:
            left.append(rollout)
            continue
        rows[row].append(rollout.rollout_id)
        bisect.insort(rooms, (room - rollout.length, row))
    return tuple(tuple(row) for row in rows), left


def _cut(
    rank: tuple[MicrobatchLayout, ...], dropped: frozenset[int]
) -> tuple[MicrobatchLayout, ...]:
    cut = []
    for microbatch in rank:
        kept = (
            tuple(item for item in row if item.group_id not in dropped) for row in microbatch.rows
        )
        rows = tuple(row for row in kept if row)
        if rows:
            cut.append(MicrobatchLayout(row_length=microbatch.row_length, rows=rows))
    return tuple(cut)
