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
from torch import nn

from common.config import Config
from learner.batches.chunk import Chunk
from learner.batches.layout import plan_microbatches
from learner.metrics.token_view import TokenObserver
from learner.models.mesh import Mesh
from learner.models.model import AdaptersOff, PolicyModel
from learner.objectives.aggregation import denominator
from learner.step.critic_update import CriticTrainer, whitened
from learner.step.gradient_sums import GradientSums
from learner.step.minibatches import Packer, mini_batches
from learner.step.optim import clip_gradients, normalize_gradients
from learner.step.preparation import Preparation, has_several_updates
from learner.step.training_batch import (
    SUMS,
    StepOutcome,
    TrainingBatch,
    merged_outcome,
    with_batch_advantages,
)

RefuseStep = Callable[[float, float], str]
"""Says of loss and norm of the gradient before clipping why the step must not be taken, or ""."""


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
        self._config = config
        self._mesh = mesh
        self._parameters: list[nn.Parameter] = [weight for _, weight in policy.trained_weights()]
        values = None if critic is None else critic.model
        self._preparation = Preparation(
            config=config, mesh=mesh, policy=policy, reference=reference, critic=values
        )
        live = None if self._preparation.evaluates_reference else reference
        self._gradients = GradientSums(
            config=config, mesh=mesh, policy=policy, reference=live, critic=critic
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
            self._gradients.add(batch, prepared)
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

    def apply(self, batch: TrainingBatch, refuse: RefuseStep | None = None) -> StepOutcome:
        """Divide, clip and step, unless loss or gradient is not finite on any rank.

        ``refuse`` is given the same numbers on every rank. Of several updates it is asked before
        the first, which decides whether the batch is taken at all.
        """
        chunks = self._with_final_advantages(batch.waiting)
        batch.waiting.clear()
        if has_several_updates(self._config.learner):
            return self._apply_several(batch, chunks, refuse)
        for chunk in chunks:
            self._gradients.add(batch, chunk)
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
        refuse: RefuseStep | None,
    ) -> StepOutcome:
        """One update after the other on random parts of the batch."""
        learner, pack = self._config.learner, self._packer()
        outcomes: list[StepOutcome] = []
        for epoch in range(learner.epochs_per_batch):
            seed = (self._config.run.seed, batch.policy_step, epoch)
            for part in mini_batches(chunks, learner.updates_per_batch, seed=seed, pack=pack):
                update = TrainingBatch(batch.policy_step)
                if epoch == 0:  # every token is looked at once
                    update.statistics, update.observer = batch.statistics, batch.observer
                self._count(update, part)
                self._gradients.add(update, part)
                outcomes.append(self._take(update, None if outcomes else refuse))
                if not outcomes[0].is_taken:
                    return outcomes[0]
        return merged_outcome(outcomes)

    def _packer(self) -> Packer:
        learner = self._config.learner
        return partial(
            plan_microbatches,
            row_tokens=learner.row_tokens,
            microbatch_tokens=learner.microbatch_tokens,
            hidden_attention_ratio=self.policy.hidden_attention_ratio,
        )

    def _drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.critic is not None:
            self.critic.optimizer.zero_grad(set_to_none=True)

    def _clipped_norms(self, batch: TrainingBatch) -> tuple[float, float]:
        """Gradients turned into means and clipped; norms of policy and critic before that."""
        policy_norm = critic_norm = 0.0
        if not self._gradients.is_frozen(batch.policy_step):
            normalize_gradients(self._parameters, batch.denominator)
            policy_norm = clip_gradients(self._parameters, self._config.learner.max_grad_norm)
        if self.critic is not None:
            critic_norm = self.critic.clipped_norm(batch.num_tokens)
        return policy_norm, critic_norm

    def _take(self, batch: TrainingBatch, refuse: RefuseStep | None) -> StepOutcome:
        """One optimizer step of policy and critic, or of neither."""
        outcome = self._outcome(batch, refuse)
        if outcome.is_taken:
            if not self._gradients.is_frozen(batch.policy_step):
                self.optimizer.step()
            if self.critic is not None:
                self.critic.optimizer.step()
        self._drop_gradients()
        return outcome

    def _outcome(self, batch: TrainingBatch, refuse: RefuseStep | None) -> StepOutcome:
        """What the batch comes to, and whether its step may be taken; every rank decides alike.

        That is because norms and sums are the same numbers on every rank.
        """
        norm, critic_norm = self._clipped_norms(batch)
        sums = self._mesh.sum_over_data(batch.sums.clone())
        gap = float(self._mesh.max(torch.tensor(batch.on_policy_gap, dtype=torch.float64)))
        named = dict(zip(SUMS, sums.tolist(), strict=True))
        loss = named["loss"] / batch.denominator
        numbers = (loss, norm, named["value_loss"], critic_norm)
        finite = all(math.isfinite(number) for number in numbers)
        return StepOutcome(
            finite=finite,
            loss=loss,
            grad_norm=norm,
            sums=named,
            on_policy_gap=gap,
            refusal=refuse(loss, norm) if finite and refuse is not None else "",
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
            self._gradients.add(part, replace(chunk, layout=chunk.layout.without(others)))
        return self._take(part, lambda loss, norm: "it is a probe")
