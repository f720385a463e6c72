"""One training batch, from chunks of groups to new weights.

Gradients are accumulated as *unnormalised* sums while groups arrive, and divided once by the number
that the whole batch came to: no chunk has to know what will follow it. Only advantages that are
normalised over the whole batch (``advantage_over = "batch"``) make chunks wait for the last one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from common.config import Config, LossConfig
from common.types import VerifiedGroup
from learner.batch import Microbatch, build_microbatch, empty_microbatch
from learner.group_source import Chunk
from learner.layout import ChunkLayout
from learner.mesh import Mesh
from learner.model import PolicyModel, evaluate_policy, run_policy
from learner.objectives.advantages import batch_advantages
from learner.objectives.aggregation import denominator
from learner.objectives.kl import k3_kl
from learner.objectives.objective import ObjectiveTerms, TokenInputs, policy_objective
from learner.optim import clip_gradients, normalize_gradients

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
    """Chunks whose advantages need the whole batch; nothing of them is computed yet."""
    denominator: float = 0.0
    sums: Tensor = field(default_factory=lambda: torch.zeros(len(SUMS), dtype=torch.float64))
    """[len(SUMS)], of this rank."""
    on_policy_gap: float = 0.0
    """Largest |policy - behavior| log-probability of this rank's lag-0 tokens, nats."""

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

    def mean(self, name: str, *, over: str = "tokens") -> float | None:
        """A sum divided by a count of tokens; None without tokens."""
        count = self.sums[over]
        return self.sums[name] / count if count else None


class Updater:
    """Forward, backward and optimizer step; methods are collectives over all ranks."""

    def __init__(
        self,
        policy: PolicyModel,
        optimizer: torch.optim.Optimizer,
        config: Config,
        mesh: Mesh,
        reference: PolicyModel | None = None,
    ) -> None:
        self.policy = policy
        self.optimizer = optimizer
        self._reference = reference
        self._config = config
        self._mesh = mesh
        self._parameters: list[nn.Parameter] = [weight for _, weight in policy.named_weights()]

    def start_batch(self, policy_step: int) -> TrainingBatch:
        """An empty batch; gradients of an abandoned one are dropped."""
        self.optimizer.zero_grad(set_to_none=True)
        return TrainingBatch(policy_step)

    def accumulate(self, batch: TrainingBatch, chunk: Chunk) -> None:
        """Add the gradient sums of ``chunk``, or keep it until the batch is whole."""
        if self._config.learner.loss.advantage_over == "batch":
            batch.waiting.append(chunk)
        else:
            self._compute(batch, chunk)
        batch.layouts.append(chunk.layout)
        batch.groups.extend(chunk.groups)
        batch.denominator += denominator(
            self._config.learner.loss.aggregation,
            chunk.trained_lengths,
            max_tokens=self._config.actor.max_tokens,
        )

    def _compute(self, batch: TrainingBatch, chunk: Chunk) -> None:
        """Forward and backward; a rank without work left computes with weight 0."""
        mine = chunk.layout.ranks[self._mesh.rank]
        for number in range(chunk.layout.num_microbatches):
            has_work = number < len(mine)
            microbatch = (
                build_microbatch(mine[number], chunk.documents) if has_work else empty_microbatch()
            )
            sums, gap = self._forward_backward(microbatch.to(self._mesh.device))
            if has_work:
                batch.sums += sums
                batch.on_policy_gap = max(batch.on_policy_gap, gap)

    def apply(self, batch: TrainingBatch) -> StepOutcome:
        """Divide, clip and step, unless loss or gradient is not finite on any rank."""
        for chunk in with_batch_advantages(batch.waiting, self._config.learner.loss):
            self._compute(batch, chunk)
        batch.waiting.clear()
        normalize_gradients(self._parameters, batch.denominator)
        norm = clip_gradients(self._parameters, self._config.learner.max_grad_norm)
        sums = self._mesh.sum(batch.sums.clone())
        gap = float(self._mesh.max(torch.tensor(batch.on_policy_gap, dtype=torch.float64)))
        named = dict(zip(SUMS, sums.tolist(), strict=True))
        loss = named["loss"] / batch.denominator
        # Norm and sums are the same numbers on every rank, so every rank decides alike.
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepOutcome(finite=finite, loss=loss, grad_norm=norm, sums=named, on_policy_gap=gap)

    def _forward_backward(self, microbatch: Microbatch) -> tuple[Tensor, float]:
        temperature = self._config.actor.temperature
        reference_logprobs = microbatch.reference_logprobs
        if self._reference is not None:
            reference_logprobs = evaluate_policy(self._reference, microbatch, temperature)
        policy_logprobs, entropy = run_policy(self.policy, microbatch, temperature)
        terms = policy_objective(
            self._config.learner.loss,
            TokenInputs(
                policy_logprobs=policy_logprobs,
                behavior_logprobs=microbatch.behavior_logprobs,
                advantages=microbatch.advantages,
                lengths=microbatch.lengths,
                lags=microbatch.lags,
                reference_logprobs=reference_logprobs,
                entropy=entropy,
            ),
        )
        loss = -(terms.objective * microbatch.weights).sum()
        loss.backward()
        behavior_kl = k3_kl(microbatch.behavior_logprobs, policy_logprobs.detach())
        on_policy = microbatch.lags == 0
        gap = (policy_logprobs.detach() - microbatch.behavior_logprobs).abs() * on_policy
        sums = _sums(
            (
                loss.detach(),
                torch.ones_like(behavior_kl),
                terms.behavior_ratio,
                terms.clipped,
                terms.capped,
                behavior_kl,
                entropy.detach(),
                on_policy,
                behavior_kl * on_policy,
                *_kl_and_tokens(terms),
            )
        )
        return sums, float(gap.max())


def with_batch_advantages(chunks: Sequence[Chunk], settings: LossConfig) -> list[Chunk]:
    """``chunks`` with the advantages of all their rollouts normalised together.

    Every rank knows every planned rollout, so all arrive at the same numbers.
    """
    planned = {
        rollout_id: rollout.advantage
        for chunk in chunks
        for rollout_id, rollout in chunk.rollouts.items()
        if rollout_id.group_id in chunk.layout.group_ids
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


def _kl_and_tokens(terms: ObjectiveTerms) -> tuple[Tensor, Tensor]:
    """The KL to the reference and 1 for every token that has one."""
    if terms.reference_kl is None:
        nothing = terms.objective.new_zeros(())
        return nothing, nothing
    return terms.reference_kl, torch.ones_like(terms.reference_kl)


def _sums(terms: Sequence[Tensor]) -> Tensor:
    """Sum of each of ``SUMS``, float64 on the CPU."""
    return torch.stack([term.sum(dtype=torch.float64) for term in terms]).cpu()
