"""Several optimizer steps on one training batch: its answers, split at random, laid out again.

PPO (Schulman et al., arXiv 1707.06347, Algorithm 1) goes over a batch in minibatches; DeepSeek-R1
splits 8,192 outputs at random into 16 (Nature 645, Methods). Which answer is in which is a function
of the run's seed, the step and the pass alone: a replay takes the same updates, however its groups
arrived. An answer stays on the rank that has fetched it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from common.types import RolloutId
from learner.batches.chunk import Chunk
from learner.batches.layout import ChunkLayout, MicrobatchLayout, PlannedRollout

Packer = Callable[[Sequence[PlannedRollout]], tuple[MicrobatchLayout, ...]]


def split_rollouts(
    rollout_ids: Sequence[RolloutId], num_parts: int, *, seed: Sequence[int]
) -> list[frozenset[RolloutId]]:
    """A random partition into ``num_parts`` of sizes that differ by one at most; no empty part."""
    ordered = sorted(rollout_ids)
    places = np.random.default_rng(seed).permutation(len(ordered))
    parts = np.array_split(places, num_parts)
    return [frozenset(ordered[place] for place in part) for part in parts if len(part)]


def mini_batches(
    chunks: Sequence[Chunk], num_updates: int, *, seed: Sequence[int], pack: Packer
) -> Iterator[Chunk]:
    """One pass over ``chunks``, a chunk an update; ``pack`` makes microbatches of a rank's share.

    ``seed`` is of the run, the step and the pass.
    """
    whole = _merged(chunks)
    for part in split_rollouts([*whole.rollouts], num_updates, seed=seed):
        yield _selected(whole, part, pack)


def _merged(chunks: Sequence[Chunk]) -> Chunk:
    """All chunks as one, without what their layouts have dropped."""
    group_ids = tuple(group_id for chunk in chunks for group_id in chunk.layout.group_ids)
    num_ranks = len(chunks[0].layout.ranks)
    return Chunk(
        layout=ChunkLayout(
            group_ids=group_ids,
            ranks=tuple(
                tuple(item for chunk in chunks for item in chunk.layout.ranks[rank])
                for rank in range(num_ranks)
            ),
        ),
        rollouts={
            rollout_id: rollout
            for chunk in chunks
            for rollout_id, rollout in chunk.kept_rollouts.items()
        },
        documents={key: item for chunk in chunks for key, item in chunk.documents.items()},
    )


def _selected(whole: Chunk, chosen: frozenset[RolloutId], pack: Packer) -> Chunk:
    """The ``chosen`` rollouts, each on the rank where it is, in microbatches of their own."""
    ranks = (
        [item for microbatch in rank for row in microbatch.rows for item in row if item in chosen]
        for rank in whole.layout.ranks
    )
    groups = {rollout_id.group_id for rollout_id in chosen}
    return Chunk(
        layout=ChunkLayout(
            group_ids=tuple(item for item in whole.layout.group_ids if item in groups),
            ranks=tuple(pack([whole.rollouts[item] for item in rank]) for rank in ranks),
        ),
        rollouts={key: item for key, item in whole.rollouts.items() if key in chosen},
        documents={key: item for key, item in whole.documents.items() if key in chosen},
    )
