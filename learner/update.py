"""One training batch, from chunks of groups to new weights.

Gradients are accumulated as *unnormalised* sums while groups arrive, and divided once by the number
that the whole batch came to: no chunk has to know what will follow it. Chunks wait for the last one
only where advantages are normalised over the whole batch (``advantage_over = "batch"``, whitening),
and where a batch is split into several updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from common.config import Config
from learner.batch import Microbatch
from learner.critic_update import CriticTrainer, no_critic_sums, whitened
from learner.group_source import Chunk
from learner.layout import MicrobatchLayout, plan_microbatches
from learner.mesh import Mesh
from learner.minibatches import mini_batches
from learner.model import (
    AdaptersOff,
    PolicyModel,
    evaluate_policy,
    run_policy,
)
from learner.objectives.aggregation import denominator
from learner.objectives.kl import k3_kl
from learner.objectives.objective import ObjectiveTerms, TokenInputs, policy_objective
from learner.objectives.ratios import importance_ratio
from learner.optim import clip_gradients, normalize_gradients
from learner.preparation import Preparation, has_several_updates, microbatches_of
from learner.sharding import free_gathered
from learner.token_view import TokenObserver, TokenView
from learner.training_batch import (
    SUMS,
    StepOutcome,
    TrainingBatch,
    merged_outcome,
    with_batch_advantages,
)


class Updater:
    """Forward, backward and optimizer step; methods are collectives over all ranks."""

    def __init__(
        self,
        policy: PolicyModel,
        optimizer: torch.optim.Optimizer,
        config: Config,
        mesh: Mesh,
        reference: PolicyModel | AdaptersOff | None = None,
        critic: CriticTrainer | None = None,
    ) -> None:
        self.policy = policy
        self.optimizer = optimizer
        self.critic = critic
        self._reference = reference
        self._config = config
        self._mesh = mesh
        self._parameters: list[nn.Parameter] = [weight for _, weight in policy.trained_weights()]
        self._preparation = Preparation(
            config=config,
            mesh=mesh,
            policy=policy,
            reference=reference,
            critic=None if critic is None else critic.model,
        )

    def start_batch(self, policy_step: int) -> TrainingBatch:
        """An empty batch; gradients of an abandoned one are dropped."""
        self._drop_gradients()
        return TrainingBatch(policy_step)

    def accumulate(self, batch: TrainingBatch, chunk: Chunk) -> None:
        """Add the gradient sums of ``chunk``, or keep it until the batch is whole."""
        prepared = self._preparation.prepared(chunk)
        if self._waits_for_whole_batch:
            batch.waiting.append(prepared)
        else:
            self._compute(batch, prepared)
        batch.chunks.append(chunk)
        batch.layouts.append(chunk.layout)
        batch.groups.extend(chunk.groups)
        self._count(batch, chunk)

    @property
    def _waits_for_whole_batch(self) -> bool:
        learner = self._config.learner
        is_whitened = self.critic is not None and learner.critic.whiten
        return learner.loss.advantage_over == "batch" or is_whitened or has_several_updates(learner)

    def _count(self, batch: TrainingBatch, chunk: Chunk) -> None:
        """Add what the sums of ``chunk`` are divided by."""
        lengths = chunk.trained_lengths
        batch.num_tokens += sum(lengths)
        batch.denominator += denominator(
            self._config.learner.loss.aggregation,
            lengths,
            max_tokens=self._config.actor.max_tokens,
        )

    def _compute(self, batch: TrainingBatch, chunk: Chunk) -> None:
        """Forward and backward; a rank without work left computes with weight 0."""
        for layout, microbatch in microbatches_of(chunk, self._mesh):
            sums, gap = self._forward_backward(batch, microbatch, layout)
            if layout is not None:
                batch.sums += sums
                batch.on_policy_gap = max(batch.on_policy_gap, gap)

    def apply(
        self, batch: TrainingBatch, refuse: Callable[[float, float], str] | None = None
    ) -> StepOutcome:
        """Divide, clip and step, unless loss or gradient is not finite on any rank.

        ``refuse`` is given the loss and the norm of the gradient before clipping, the same on every
        rank, and says why such a step is not to be taken, or "". Of several updates it is asked
        before the first, which decides whether the batch is taken at all.
        """
        chunks = self._with_final_advantages(batch.waiting)
        batch.waiting.clear()
        if has_several_updates(self._config.learner):
            return self._apply_several(batch, chunks, refuse)
        for chunk in chunks:
            self._compute(batch, chunk)
        return self._take(batch, refuse)

    def _with_final_advantages(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        learner = self._config.learner
        if learner.loss.advantage_over == "batch":
            return with_batch_advantages(chunks, learner.loss)
        if self.critic is not None and learner.critic.whiten:
            return whitened(chunks, learner.loss, self._mesh)
        return list(chunks)

    def _apply_several(
        self,
        batch: TrainingBatch,
        chunks: Sequence[Chunk],
        refuse: Callable[[float, float], str] | None,
    ) -> StepOutcome:
        """One update after the other on random parts of the batch."""
        learner = self._config.learner
        pack = partial(
            plan_microbatches,
            row_tokens=learner.row_tokens,
            microbatch_tokens=learner.microbatch_tokens,
            hidden_attention_ratio=self.policy.hidden_attention_ratio,
        )
        outcomes: list[StepOutcome] = []
        for epoch in range(learner.epochs_per_batch):
            seed = (self._config.run.seed, batch.policy_step, epoch)
            for part in mini_batches(chunks, learner.updates_per_batch, seed=seed, pack=pack):
                update = TrainingBatch(batch.policy_step)
                if epoch == 0:  # every token is looked at once
                    update.statistics, update.observer = batch.statistics, batch.observer
                self._count(update, part)
                self._compute(update, part)
                outcomes.append(self._take(update, None if outcomes else refuse))
                if not outcomes[0].is_taken:
                    return outcomes[0]
        return merged_outcome(outcomes)

    def _is_frozen(self, policy_step: int) -> bool:
        """Whether the critic learns alone."""
        warmup_steps = self._config.learner.critic.warmup_steps
        return self.critic is not None and policy_step < warmup_steps

    def _drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.critic is not None:
            self.critic.optimizer.zero_grad(set_to_none=True)

    def _clipped_norms(self, batch: TrainingBatch) -> tuple[float, float]:
        """Gradients turned into means and clipped; norms of policy and critic before that."""
        policy_norm = critic_norm = 0.0
        if not self._is_frozen(batch.policy_step):
            normalize_gradients(self._parameters, batch.denominator)
            policy_norm = clip_gradients(self._parameters, self._config.learner.max_grad_norm)
        if self.critic is not None:
            critic_norm = self.critic.clipped_norm(batch.num_tokens)
        return policy_norm, critic_norm

    def _take(
        self, batch: TrainingBatch, refuse: Callable[[float, float], str] | None
    ) -> StepOutcome:
        """One optimizer step of policy and critic, or of neither."""
        norm, critic_norm = self._clipped_norms(batch)
        sums = self._mesh.sum(batch.sums.clone())
        gap = float(self._mesh.max(torch.tensor(batch.on_policy_gap, dtype=torch.float64)))
        named = dict(zip(SUMS, sums.tolist(), strict=True))
        loss = named["loss"] / batch.denominator
        # Norm and sums are the same numbers on every rank, so every rank decides alike.
        numbers = (loss, norm, named["value_loss"], critic_norm)
        finite = all(math.isfinite(number) for number in numbers)
        refusal = refuse(loss, norm) if finite and refuse is not None else ""
        if finite and not refusal:
            if not self._is_frozen(batch.policy_step):
                self.optimizer.step()
            if self.critic is not None:
                self.critic.optimizer.step()
        self._drop_gradients()
        return StepOutcome(
            finite=finite,
            loss=loss,
            grad_norm=norm,
            sums=named,
            on_policy_gap=gap,
            refusal=refusal,
        )

    def probe(
        self, batch: TrainingBatch, group_ids: Sequence[int], observer: TokenObserver
    ) -> StepOutcome:
        """What those groups alone come to as their part of ``batch``; the weights stay."""
        self._drop_gradients()
        wanted = frozenset(group_ids)
        others = frozenset(batch.group_ids) - wanted
        needed = [
            chunk
            for chunk in batch.chunks
            if self._waits_for_whole_batch or not wanted.isdisjoint(chunk.layout.group_ids)
        ]
        prepared = [self._preparation.prepared(chunk) for chunk in needed]
        part = TrainingBatch(
            batch.policy_step,
            denominator=batch.denominator,
            num_tokens=batch.num_tokens,
            observer=observer,
        )
        for chunk in self._with_final_advantages(prepared):
            self._compute(part, replace(chunk, layout=chunk.layout.without(others)))
        return self._take(part, lambda loss, norm: "it is a probe")

    def _forward_backward(
        self, batch: TrainingBatch, microbatch: Microbatch, layout: MicrobatchLayout | None
    ) -> tuple[Tensor, float]:
        """Sums and largest gap; without a ``layout`` the work is empty and nobody looks at it."""
        temperature = self._config.actor.temperature
        reference_logprobs = microbatch.reference_logprobs
        if self._reference is not None and not self._preparation.evaluates_reference:
            reference_logprobs = evaluate_policy(self._reference, microbatch, temperature)
        is_frozen = self._is_frozen(batch.policy_step)
        with torch.set_grad_enabled(not is_frozen):
            policy_logprobs, entropy = run_policy(self.policy, microbatch, temperature)
        terms = policy_objective(
            self._config.learner.loss,
            TokenInputs(
                policy_logprobs=policy_logprobs,
                behavior_logprobs=microbatch.behavior_logprobs,
                advantages=microbatch.advantages,
                lengths=microbatch.lengths,
                lags=microbatch.token_lags,
                proximal_logprobs=microbatch.proximal_logprobs,
                reference_logprobs=reference_logprobs,
                entropy=entropy,
            ),
        )
        loss = -(terms.objective * microbatch.weights).sum()
        if layout is not None:
            self._show(
                batch,
                TokenView(
                    layout=layout,
                    microbatch=microbatch,
                    policy_logprobs=policy_logprobs,
                    entropy=entropy,
                    reference_logprobs=reference_logprobs,
                    terms=terms,
                    denominator=batch.denominator,
                ),
            )
        if is_frozen:
            free_gathered(self.policy)
        else:
            loss.backward()
        # the distance to the sampler is that of the policy before the first of several updates
        unmoved = microbatch.proximal_logprobs
        if unmoved is None:
            unmoved = policy_logprobs.detach()
        behavior_kl = k3_kl(microbatch.behavior_logprobs, unmoved)
        on_policy = microbatch.lags == 0
        gap = (unmoved - microbatch.behavior_logprobs).abs() * on_policy
        sums = _sums(
            (
                loss.detach(),
                torch.ones_like(behavior_kl),
                importance_ratio(unmoved, microbatch.behavior_logprobs),
                terms.clipped,
                terms.capped,
                behavior_kl,
                entropy.detach(),
                on_policy,
                behavior_kl * on_policy,
                *_kl_and_tokens(terms),
                *self._critic_sums(microbatch),
            )
        )
        return sums, float(gap.max())

    def _critic_sums(self, microbatch: Microbatch) -> tuple[Tensor, ...]:
        """Forward and backward of the critic, if there is one."""
        if self.critic is None:
            return no_critic_sums(microbatch.advantages)
        return self.critic.forward_backward(microbatch)

    def _show(self, batch: TrainingBatch, view: TokenView) -> None:
        loss = self._config.learner.loss
        in_loss = loss.kl_in == "loss"
        batch.statistics.observe(
            view,
            kl_coefficient=loss.kl_coefficient if in_loss else 0.0,
            entropy_coefficient=loss.entropy_coefficient,
        )
        if batch.observer is not None:
            batch.observer(view)


def _kl_and_tokens(terms: ObjectiveTerms) -> tuple[Tensor, Tensor]:
    """The KL to the reference and 1 for every token that has one."""
    if terms.reference_kl is None:
        nothing = terms.objective.new_zeros(())
        return nothing, nothing
    return terms.reference_kl, torch.ones_like(terms.reference_kl)


def _sums(terms: Sequence[Tensor]) -> Tensor:
    """Sum of each of ``SUMS``, float64 on the CPU."""
    return torch.stack([term.sum(dtype=torch.float64) for term in terms]).cpu()
