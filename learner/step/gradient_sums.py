"""Forward and backward of a chunk: unnormalised sums of gradients, and of what they are made of.

``loss`` of a microbatch is the negative sum of w_t J_t over its T trained tokens, with J_t of
``objectives.objective``; nothing is divided before the batch is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import Config
from learner.batches.batch import Microbatch
from learner.batches.chunk import Chunk, microbatches_of
from learner.batches.layout import MicrobatchLayout
from learner.metrics.token_view import TokenView
from learner.models.mesh import Mesh
from learner.models.model import AdaptersOff, PolicyModel, evaluate_policy, run_policy
from learner.models.sharding import free_gathered
from learner.objectives.kl import k3_kl
from learner.objectives.objective import ObjectiveTerms, TokenInputs, policy_objective
from learner.objectives.ratios import importance_ratio
from learner.step.critic_update import CriticTrainer, no_critic_sums
from learner.step.training_batch import TrainingBatch

_NO_WORK = MicrobatchLayout(row_length=0, rows=())


@dataclass(slots=True, kw_only=True)
class GradientSums:
    """Adds chunks to the gradients of policy and critic; methods are collectives over all ranks."""

    config: Config
    mesh: Mesh
    policy: PolicyModel
    reference: PolicyModel | AdaptersOff | None
    """Computed with each microbatch; None where the documents bring its log-probabilities."""
    critic: CriticTrainer | None

    def add(self, batch: TrainingBatch, chunk: Chunk) -> None:
        """Forward and backward; a rank without work left computes with weight 0."""
        for layout, microbatch in microbatches_of(chunk, self.mesh):
            view = self._forward(batch, microbatch, layout or _NO_WORK)
            if layout is not None:
                self._show(batch, view)
            loss = self._backward(view, batch.policy_step)
            critic_columns = self._critic_columns(microbatch)
            if layout is not None:
                batch.sums += _summed((*_policy_columns(view, loss), *critic_columns))
                batch.on_policy_gap = max(batch.on_policy_gap, _on_policy_gap(view))

    def is_frozen(self, policy_step: int) -> bool:
        """Whether the critic learns alone."""
        return self.critic is not None and self.critic.learns_alone(policy_step)

    def _forward(
        self, batch: TrainingBatch, microbatch: Microbatch, layout: MicrobatchLayout
    ) -> TokenView:
        temperature = self.config.actor.temperature
        reference_logprobs = microbatch.reference_logprobs
        if self.reference is not None:
            reference_logprobs = evaluate_policy(self.reference, microbatch, temperature)
        with torch.set_grad_enabled(not self.is_frozen(batch.policy_step)):
            policy_logprobs, entropy = run_policy(self.policy, microbatch, temperature)
        return TokenView(
            layout=layout,
            microbatch=microbatch,
            policy_logprobs=policy_logprobs,
            entropy=entropy,
            reference_logprobs=reference_logprobs,
            terms=self._terms(microbatch, policy_logprobs, entropy, reference_logprobs),
            denominator=batch.denominator,
        )

    def _terms(
        self,
        microbatch: Microbatch,
        policy_logprobs: Tensor,
        entropy: Tensor,
        reference_logprobs: Tensor | None,
    ) -> ObjectiveTerms:
        inputs = TokenInputs(
            policy_logprobs=policy_logprobs,
            behavior_logprobs=microbatch.behavior_logprobs,
            advantages=microbatch.advantages,
            lengths=microbatch.lengths,
            lags=microbatch.token_lags,
            proximal_logprobs=microbatch.proximal_logprobs,
            reference_logprobs=reference_logprobs,
            entropy=entropy,
        )
        return policy_objective(self.config.learner.loss, inputs)

    def _show(self, batch: TrainingBatch, view: TokenView) -> None:
        loss = self.config.learner.loss
        batch.statistics.observe(
            view,
            kl_coefficient=loss.kl_coefficient if loss.kl_in == "loss" else 0.0,
            entropy_coefficient=loss.entropy_coefficient,
        )
        if batch.observer is not None:
            batch.observer(view)

    def _backward(self, view: TokenView, policy_step: int) -> Tensor:
        """The loss, a number without a gradient."""
        loss = -(view.terms.objective * view.microbatch.weights).sum()
        if self.is_frozen(policy_step):
            free_gathered(self.policy)
        else:
            loss.backward()
        return loss.detach()

    def _critic_columns(self, microbatch: Microbatch) -> tuple[Tensor, ...]:
        """Forward and backward of the critic, if there is one."""
        if self.critic is None:
            return no_critic_sums(microbatch.advantages)
        return self.critic.forward_backward(microbatch)


def _policy_columns(view: TokenView, loss: Tensor) -> tuple[Tensor, ...]:
    """``training_batch.SUMS`` before summation, [T] or a number, without those of the critic."""
    behavior_logprobs = view.microbatch.behavior_logprobs
    behavior_kl = k3_kl(behavior_logprobs, view.unmoved_logprobs)
    on_policy = view.microbatch.lags == 0
    return (
        loss,
        torch.ones_like(behavior_kl),
        importance_ratio(view.unmoved_logprobs, behavior_logprobs),
        view.terms.clipped,
        view.terms.capped,
        behavior_kl,
        view.entropy.detach(),
        on_policy,
        behavior_kl * on_policy,
        *_kl_and_tokens(view.terms),
    )


def _kl_and_tokens(terms: ObjectiveTerms) -> tuple[Tensor, Tensor]:
    """The KL to the reference and 1 for every token that has one."""
    if terms.reference_kl is None:
        nothing = terms.objective.new_zeros(())
        return nothing, nothing
    return terms.reference_kl, torch.ones_like(terms.reference_kl)


def _on_policy_gap(view: TokenView) -> float:
    """Largest |policy - behavior| log-probability of lag-0 tokens, nats."""
    gaps = (view.unmoved_logprobs - view.microbatch.behavior_logprobs).abs()
    return float((gaps * (view.microbatch.lags == 0)).max())


def _summed(columns: Sequence[Tensor]) -> Tensor:
    """Sum of each column, float64 [len(columns)] on the CPU."""
    return torch.stack([column.sum(dtype=torch.float64) for column in columns]).cpu()
