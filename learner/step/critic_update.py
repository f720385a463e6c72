"""How the critic of PPO takes part in a training batch: advantages before it, a step of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.arrays import Float64Array
from common.config import Config, CriticConfig, LearnerConfig, LossConfig
from learner.batches.batch import Document, Microbatch
from learner.batches.chunk import Chunk
from learner.models.critic import ValueModel, load_critic, run_critic
from learner.models.mesh import Mesh
from learner.objectives.critic import (
    advantages_and_returns,
    clipped_value_loss,
    explained_variance,
    token_rewards,
)
from learner.step.optim import (
    clip_gradients,
    configured_adamw,
    normalize_gradients,
    set_learning_rate,
)

CRITIC_SUMS = (
    "value_loss",
    "value_clipped",
    "value_tokens",
    "values",
    "returns",
    "returns_squared",
    "residuals",
    "residuals_squared",
)
"""What every microbatch of a critic adds up over its trained tokens, after the policy's sums."""


@dataclass(slots=True, kw_only=True)
class CriticTrainer:
    """A value model with its optimizer; methods that compute are collectives over all ranks."""

    model: ValueModel
    optimizer: torch.optim.Optimizer
    settings: CriticConfig

    def follow(self, rate_ratio: float) -> None:
        """Learn at that share of the peak rate, on the policy's schedule."""
        set_learning_rate(self.optimizer, self.settings.learning_rate * rate_ratio)

    def learns_alone(self, policy_step: int) -> bool:
        """Whether the policy stands still in the batch computed at ``policy_step``."""
        return policy_step < self.settings.warmup_steps

    def forward_backward(self, microbatch: Microbatch) -> tuple[Tensor, ...]:
        """Add the gradient sums of the value loss; ``CRITIC_SUMS``, before summation.

        A microbatch of nothing, which a rank without work computes, adds a gradient of 0.
        """
        values = run_critic(self.model, microbatch)
        if microbatch.values is None or microbatch.returns is None:
            (values * 0.0).sum().backward()
            return no_critic_sums(values)
        old, returns = microbatch.values, microbatch.returns
        loss = clipped_value_loss(values, old, returns, clip=self.settings.value_clip)
        loss.sum().backward()
        residuals = returns - old
        return (
            loss.detach(),
            _clip_binds(values.detach(), old, returns, self.settings.value_clip),
            torch.ones_like(returns),
            old,
            returns,
            returns.double().square(),
            residuals,
            residuals.double().square(),
        )

    def clipped_norm(self, num_tokens: float) -> float:
        """Turn sums into means over tokens and clip; the norm before that."""
        weights = [weight for _, weight in self.model.trained_weights()]
        normalize_gradients(weights, num_tokens)
        return clip_gradients(weights, self.settings.max_grad_norm)


def build_critic(config: Config, mesh: Mesh) -> CriticTrainer | None:
    """The critic that the run begins with, None where it has none."""
    learner = config.learner
    if learner.loss.baseline != "critic":
        return None
    model = load_critic(
        learner.critic.path,
        Path(config.model.path),
        mesh,
        max_length=config.model.max_length,
        settings=learner,
    )
    optimizer = configured_adamw(model, learner)
    return CriticTrainer(model=model, optimizer=optimizer, settings=learner.critic)


def no_critic_sums(like: Tensor) -> tuple[Tensor, ...]:
    """``CRITIC_SUMS`` of nothing."""
    return (like.new_zeros(()),) * len(CRITIC_SUMS)


def value_statistics(sums: Mapping[str, float]) -> dict[str, float | None]:
    """Value loss, mean value and return, explained variance; None everywhere without a critic."""
    count = sums["value_tokens"]
    if not count:
        return dict.fromkeys(("value_loss", "value_mean", "return_mean", "explained_variance"))
    return {
        "value_loss": sums["value_loss"] / count,
        "value_clip_ratio": sums["value_clipped"] / count,
        "value_mean": sums["values"] / count,
        "return_mean": sums["returns"] / count,
        "explained_variance": explained_variance(
            count=count,
            returns=sums["returns"],
            returns_squared=sums["returns_squared"],
            residuals=sums["residuals"],
            residuals_squared=sums["residuals_squared"],
        ),
    }


def with_critic_advantages(
    document: Document, values: Float64Array, advantages: Float64Array, returns: Float64Array
) -> Document:
    """``document`` with what GAE makes of it, [num_trained] each."""
    return replace(
        document,
        values=document.spread_trained(values),
        token_advantages=document.spread_trained(advantages),
        returns=document.spread_trained(returns),
    )


def gae_documents(
    documents: Sequence[Document],
    values: Sequence[Float64Array],
    kl: Sequence[Float64Array] | None,
    learner: LearnerConfig,
) -> list[Document]:
    """Each document with its advantages and returns, by values and KL of its trained tokens.

    ``advantage`` of a document is its reward here, paid at its last trained token; ``kl`` is what
    the reward of each token is lowered by. Masked tokens are left out, as if there were none.
    """
    beta = learner.loss.kl_coefficient
    nothing = [np.zeros(len(row)) for row in values]
    rewards = [
        token_rewards(document.advantage, row, beta=beta)
        for document, row in zip(documents, nothing if kl is None else kl, strict=True)
    ]
    found = advantages_and_returns(rewards, values, learner.critic)
    return [
        with_critic_advantages(document, row, advantages, returns)
        for document, row, (advantages, returns) in zip(documents, values, found, strict=True)
    ]


def whitened(chunks: Sequence[Chunk], settings: LossConfig, mesh: Mesh) -> list[Chunk]:
    """``chunks`` with (A - mean) / (std + epsilon) over all trained tokens of all ranks."""
    own = [
        document.select_trained(document.token_advantages)
        for chunk in chunks
        for document in chunk.documents.values()
        if document.token_advantages is not None
    ]
    values = np.concatenate(own) if own else np.zeros(0)
    count, total = _summed(mesh, len(values), values.sum())
    mean = total / max(count, 1.0)
    (squares,) = _summed(mesh, np.square(values - mean).sum())
    divisor = 1.0
    if settings.advantage_std != "none":
        freedom = count - 1.0 if settings.advantage_std == "sample" else count
        divisor = math.sqrt(squares / max(freedom, 1.0)) + settings.advantage_epsilon
    return [
        replace(
            chunk,
            documents={
                rollout_id: _scaled(document, mean, divisor)
                for rollout_id, document in chunk.documents.items()
            },
        )
        for chunk in chunks
    ]


def _scaled(document: Document, mean: float, divisor: float) -> Document:
    if document.token_advantages is None:
        return document
    return replace(document, token_advantages=(document.token_advantages - mean) / divisor)


def _summed(mesh: Mesh, *numbers: float) -> list[float]:
    """Each number, added up over all shares of a batch."""
    found: list[float] = mesh.sum_over_data(torch.tensor(numbers, dtype=torch.float64)).tolist()
    return found


def _clip_binds(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Boolean [T]: tokens whose value loss has no gradient."""
    if clip <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    moved = values - old_values
    near = old_values + moved.clamp(-clip, clip)
    return (moved.abs() > clip) & ((near - returns).square() > (values - returns).square())
