"""A training batch as it grows, and what a step says of itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from common.config import LossConfig
from common.types import VerifiedGroup
from learner.batches.chunk import Chunk
from learner.batches.layout import ChunkLayout
from learner.metrics.token_statistics import TokenStatistics
from learner.metrics.token_view import TokenObserver
from learner.objectives.advantages import batch_advantages
from learner.step.critic_update import CRITIC_SUMS

SUMS = (
    "loss",
    "tokens",
    "behavior_ratio",
    "clipped",
    "capped",
    "behavior_kl",
    "entropy",
    "on_policy_tokens",
    "on_policy_kl",
    "reference_kl",
    "reference_tokens",
    *CRITIC_SUMS,
)
"""What every microbatch adds up; one number each over its trained tokens."""


@dataclass(slots=True)
class TrainingBatch:
    """What has been accumulated towards one step."""

    policy_step: int
    layouts: list[ChunkLayout] = field(default_factory=list)
    groups: list[VerifiedGroup] = field(default_factory=list)
    """On rank 0 only."""
    waiting: list[Chunk] = field(default_factory=list)
    """Chunks whose gradients need the whole batch; none of them is computed yet."""
    denominator: float = 0.0
    num_tokens: int = 0
    """Trained tokens over all ranks: what the value loss is divided by."""
    sums: Tensor = field(default_factory=lambda: torch.zeros(len(SUMS), dtype=torch.float64))
    """[len(SUMS)], of this rank."""
    on_policy_gap: float = 0.0
    """Largest |policy - behavior| log-probability of this rank's lag-0 tokens, nats."""
    chunks: list[Chunk] = field(default_factory=list)
    """What was accumulated, as it came: to be recorded, or computed again without a group."""
    statistics: TokenStatistics = field(default_factory=TokenStatistics)
    """Of this rank."""
    observer: TokenObserver | None = None
    """Looks at every microbatch of this rank besides."""

    @property
    def group_ids(self) -> list[int]:
        """Groups accumulated so far, in order."""
        return [group_id for layout in self.layouts for group_id in layout.group_ids]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """One step over all ranks."""

    finite: bool
    """False when loss or gradient was not: the weights are then untouched."""
    loss: float
    grad_norm: float
    """Before clipping."""
    sums: dict[str, float]
    on_policy_gap: float
    refusal: str = ""
    """Why a finite step was not taken; "" when it was."""
    num_updates: int = 1
    """Optimizer steps of the batch."""
    num_skipped: int = 0
    """Updates after the first whose loss or gradient was not finite: not taken."""

    @property
    def is_taken(self) -> bool:
        """Whether the weights are those after the step."""
        return self.finite and not self.refusal

    def mean(self, name: str, *, over: str = "tokens") -> float | None:
        """A sum divided by a count of tokens; None without tokens."""
        count = self.sums[over]
        return self.sums[name] / count if count else None


def merged_outcome(outcomes: Sequence[StepOutcome]) -> StepOutcome:
    """Several updates of one batch: sums over those that were taken, means of loss and norm."""
    taken = [outcome for outcome in outcomes if outcome.is_taken]
    return StepOutcome(
        finite=True,
        loss=math.fsum(outcome.loss for outcome in taken) / len(taken),
        grad_norm=math.fsum(outcome.grad_norm for outcome in taken) / len(taken),
        sums={name: math.fsum(outcome.sums[name] for outcome in taken) for name in SUMS},
        on_policy_gap=max(outcome.on_policy_gap for outcome in taken),
        num_updates=len(taken),
        num_skipped=len(outcomes) - len(taken),
    )


def with_batch_advantages(chunks: Sequence[Chunk], settings: LossConfig) -> list[Chunk]:
    """``chunks`` with the advantages of all their rollouts normalised together.

    Every rank knows every planned rollout, so all arrive at the same numbers.
    """
    planned = {
        rollout_id: rollout.advantage
        for chunk in chunks
        for rollout_id, rollout in chunk.kept_rollouts.items()
    }
    values = batch_advantages(list(planned.values()), settings)
    advantages = dict(zip(planned, values.tolist(), strict=True))
    return [
        replace(
            chunk,
            documents={
                rollout_id: replace(document, advantage=advantages[rollout_id])
                for rollout_id, document in chunk.documents.items()
                if rollout_id in advantages
            },
        )
        for chunk in chunks
    ]
