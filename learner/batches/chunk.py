"""Some groups of a training batch with what one rank computes of them, and its microbatches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from common.types import RolloutId, VerifiedGroup
from learner.batches.batch import Document, Microbatch, build_microbatch, empty_microbatch
from learner.batches.layout import ChunkLayout, MicrobatchLayout, PlannedRollout
from learner.models.mesh import Mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Groups that arrived together; what the layout does not name is not computed."""

    layout: ChunkLayout
    """Of all ranks."""
    rollouts: Mapping[RolloutId, PlannedRollout]
    """Of all ranks."""
    documents: Mapping[RolloutId, Document]
    """Of this rank."""
    groups: tuple[VerifiedGroup, ...] = field(default=())
    """On rank 0 only."""

    @property
    def kept_rollouts(self) -> dict[RolloutId, PlannedRollout]:
        """Rollouts of the groups in the layout, over all ranks."""
        kept = frozenset(self.layout.group_ids)
        return {
            rollout_id: rollout
            for rollout_id, rollout in self.rollouts.items()
            if rollout_id.group_id in kept
        }

    @property
    def trained_lengths(self) -> list[int]:
        """Trained tokens of every rollout in the layout, over all ranks."""
        return [rollout.num_trained_tokens for rollout in self.kept_rollouts.values()]

    def without(self, group_ids: Iterable[int]) -> Chunk:
        """The same chunk with some groups cut out of layout and groups."""
        dropped = frozenset(group_ids)
        return replace(
            self,
            layout=self.layout.without(dropped),
            groups=tuple(group for group in self.groups if group.group_id not in dropped),
        )


def microbatches_of(
    chunk: Chunk, mesh: Mesh
) -> Iterator[tuple[MicrobatchLayout | None, Microbatch]]:
    """This rank's microbatches, as many on every rank; an empty one has no layout."""
    mine = chunk.layout.ranks[mesh.data_rank]
    for number in range(chunk.layout.num_microbatches):
        layout = mine[number] if number < len(mine) else None
        microbatch = empty_microbatch()
        if layout is not None:
            microbatch = build_microbatch(layout, chunk.documents)
        yield layout, microbatch.to(mesh.device)
