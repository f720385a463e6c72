"""What callers want of a model, and what the process is sent for it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from actors.verification.models.batching import MAX_ROW_TOKENS, TreeBatch, plan_batches
from actors.verification.models.frames import ForwardRequest
from actors.verification.models.layout import flat_places, joined_tokens, tree_shapes
from common.arrays import Int32Array
from common.config import VerifierConfig
from common.types import WeightVersion

_NO_TARGETS: Int32Array = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class RunnerLimits:
    """Bounds of one runner; see ``[verifier]``."""

    batch_tokens: int
    queue_tokens: int
    batch_s: float
    load_s: float
    num_threads: int = 1
    max_row_tokens: int = MAX_ROW_TOKENS

    @classmethod
    def under(cls, config: VerifierConfig) -> RunnerLimits:
        """The limits that ``[verifier]`` sets."""
        return cls(
            batch_tokens=config.model_batch_tokens,
            queue_tokens=config.model_queue_tokens,
            batch_s=config.model_batch_limit_s,
            load_s=config.model_load_limit_s,
            num_threads=config.model_threads,
        )


@dataclass(frozen=True, slots=True)
class Work:
    """A sequence for one model, and what is wanted of it."""

    model: str
    token_ids: Int32Array
    """[N], N >= 1."""
    positions: Int32Array
    """[P], places of the sequence whose outputs are wanted."""
    share: Hashable = None
    """Works of one value may begin with the same tokens, such as a group's prompt."""
    targets: Int32Array = field(default_factory=lambda: _NO_TARGETS)
    """[P] tokens whose log-probability is wanted, or [0]."""
    temperature: float = 1.0
    version: WeightVersion | None = None

    @property
    def batched_with(self) -> Hashable:
        """Works of one value may share a batch."""
        return self.model, self.temperature, self.version


@dataclass(frozen=True, slots=True)
class BuiltBatch:
    """What the process is sent for one planned batch."""

    plan: TreeBatch
    request: ForwardRequest
    arrays: tuple[Int32Array, ...]
    """Token ids, places, targets; see :class:`ForwardRequest`."""


def build_batches(works: Sequence[Work], limits: RunnerLimits) -> list[BuiltBatch]:
    """Plan ``works``, which may share batches, and make what the process is sent."""
    sequences = [work.token_ids for work in works]
    plans = plan_batches(
        sequences,
        [number if work.share is None else (work.share,) for number, work in enumerate(works)],
        budget_tokens=limits.batch_tokens,
        max_row_tokens=limits.max_row_tokens,
    )
    return [_built(plan, works, sequences) for plan in plans]


def _built(plan: TreeBatch, works: Sequence[Work], sequences: Sequence[Int32Array]) -> BuiltBatch:
    request = ForwardRequest(
        model=works[0].model,
        row_length=plan.row_length,
        rows=tree_shapes(plan),
        temperature=works[0].temperature,
        version=works[0].version,
    )
    arrays = (
        joined_tokens(plan, sequences),
        np.concatenate(flat_places(plan, [work.positions for work in works])),
        np.concatenate([works[member].targets for member in plan.members]),
    )
    return BuiltBatch(plan, request, arrays)
