"""What one forward-backward knows of each trained token, for those who look on.

Statistics, guards and the flight recorder read it; nothing that they do reaches the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from common.types import RolloutId
from learner.batches.batch import Microbatch
from learner.batches.layout import MicrobatchLayout
from learner.objectives.objective import ObjectiveTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """One microbatch of T trained tokens, after the forward pass and before the backward pass."""

    layout: MicrobatchLayout
    """Whose documents they are: rows one after the other, documents in the order of the row."""
    microbatch: Microbatch
    policy_logprobs: Tensor
    """float32 [T] nats, with a gradient: a hook on it sees d loss / d log-probability."""
    entropy: Tensor
    """float32 [T] nats."""
    reference_logprobs: Tensor | None
    """float32 [T] nats, None without a KL term."""
    terms: ObjectiveTerms
    denominator: float
    """What the sums are divided by, as far as it is counted: with one update, not to the end."""

    @property
    def unmoved_logprobs(self) -> Tensor:
        """float32 [T] nats without a gradient, of the policy before the first of several updates.

        What is compared with the sampler: what moves within a batch is seen in the clip.
        """
        before = self.microbatch.proximal_logprobs
        return self.policy_logprobs.detach() if before is None else before

    def documents(self) -> Iterator[tuple[RolloutId, slice]]:
        """Each rollout with its place among the T tokens."""
        start = 0
        rollout_ids = (rollout_id for row in self.layout.rows for rollout_id in row)
        for rollout_id, length in zip(rollout_ids, self.microbatch.lengths.tolist(), strict=True):
            yield rollout_id, slice(start, start + length)
            start += length


TokenObserver = Callable[[TokenView], None]
"""Looks at a microbatch; must change nothing."""
