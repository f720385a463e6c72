"""Which rollout goes to which rank, microbatch, row and place: pure planning, no tensors.

A layout is deterministic in its inputs and small enough for the step record, so that a replay adds
up the same numbers in the same order. Documents stand one after the other in a row, in the order
listed, so order and lengths say the offsets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

import msgspec

from common.balance import sequence_cost, split_evenly
from common.packing import pack_rows
from common.types import Count, FiniteFloat, Record, RolloutId, SpanNumbers, StepReward


class RoutingShape(NamedTuple):
    """How a mixture of experts routes a token."""

    num_layers: int
    """Decoder layers, those without experts too."""
    top_k: int
    """Experts of a layer that compute it."""
    num_experts: int
    """Experts of a layer."""


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
    span_lags: SpanNumbers = ()
    """Policy lag of each version span."""
    steps: tuple[StepReward, ...] = ()
    """Advantages of its steps, where those are what makes the advantages of its tokens."""
    num_routing_bytes: Count = 0
    """Of the record of its experts, which travels with its arrays."""
    header_hash: Annotated[str, msgspec.Meta(max_length=16)] = ""
    """Of its header where its arrays are not with the broker: only that rollout is trained."""

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
    """A share each; ``learner.context_parallel`` ranks compute one together."""

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
    attention_ratio: float = 0.0,
    hidden_attention_ratio: float = math.inf,
) -> ChunkLayout:
    """Divide ``rollouts`` over ranks and pack each share into microbatches.

    ``attention_ratio`` is what attention adds to the cost, see :mod:`common.balance`; the others
    are those of :func:`common.packing.pack_rows`.
    """
    shares = split_over_ranks(rollouts, num_ranks, attention_ratio)
    return ChunkLayout(
        group_ids=tuple(group_ids),
        ranks=tuple(
            plan_microbatches(
                share,
                row_tokens=row_tokens,
                microbatch_tokens=microbatch_tokens,
                hidden_attention_ratio=hidden_attention_ratio,
            )
            for share in shares
        ),
    )


def split_over_ranks(
    rollouts: Sequence[PlannedRollout], num_ranks: int, attention_ratio: float = 0.0
) -> list[list[PlannedRollout]]:
    """Shares of like cost, see :func:`common.balance.split_evenly`; order does not matter."""
    waiting = _longest_first(rollouts)
    costs = [sequence_cost(rollout.length, attention_ratio) for rollout in waiting]
    return [[waiting[item] for item in part] for part in split_evenly(costs, num_ranks)]


def plan_microbatches(
    rollouts: Sequence[PlannedRollout],
    *,
    row_tokens: int,
    microbatch_tokens: int,
    hidden_attention_ratio: float = math.inf,
) -> tuple[MicrobatchLayout, ...]:
    """Pack documents into microbatches of at most ``microbatch_tokens`` places, padding included.

    Best-fit decreasing, see :func:`common.packing.pack_rows`. A document longer than the budget
    gets a microbatch of its own.
    """
    waiting = _longest_first(rollouts)
    lengths = [rollout.length for rollout in waiting]
    return tuple(
        MicrobatchLayout(
            row_length=packed.row_length,
            rows=tuple(tuple(waiting[item].rollout_id for item in row) for row in packed.rows),
        )
        for packed in pack_rows(
            lengths,
            row_tokens=row_tokens,
            budget_tokens=microbatch_tokens,
            hidden_attention_ratio=hidden_attention_ratio,
        )
    )


def _longest_first(rollouts: Sequence[PlannedRollout]) -> list[PlannedRollout]:
    return sorted(rollouts, key=lambda rollout: (-rollout.length, rollout.rollout_id))


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
