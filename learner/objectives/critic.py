"""What PPO with a critic needs besides the policy objective, the baseline that GRPO does without.

Completions of L tokens, in float64. Value V_t is the critic's guess, before token t, of the rewards
still to come; after the last token there are none. Arrays [S, L] hold several completions, filled
up with zeros behind their ends: rewards and values of 0 there change nothing before them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.arrays import Float64Array
from common.config import CriticConfig


def token_rewards(outcome: float, kl: Float64Array, *, beta: float) -> Float64Array:
    """r_t = [t is last] outcome - beta kl_t, [L]: DeepSeekMath (arXiv 2402.03300) eq. 2.

    ``kl`` is an estimate of the KL from the reference policy to the one that training began the
    batch with, a token each; the paper has k1 = log(pi / pi_ref).
    """
    rewards = -beta * kl
    rewards[-1] += outcome
    return rewards


def generalized_advantages(
    rewards: Float64Array,
    values: Float64Array,
    *,
    discount: float,
    trace: float | Float64Array,
) -> Float64Array:
    """A_t = sum_k (gamma lambda)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t, [..., L].

    GAE (Schulman et al., arXiv 1506.02438) eq. 16; ``discount`` is gamma, ``trace`` lambda, one for
    all or one a completion. With gamma = lambda = 1 it is the return less the value.
    """
    advantages = np.zeros_like(rewards)
    next_value = following = np.zeros(rewards.shape[:-1])
    for t in range(rewards.shape[-1] - 1, -1, -1):
        delta = rewards[..., t] + discount * next_value - values[..., t]
        following = delta + discount * trace * following
        advantages[..., t] = following
        next_value = values[..., t]
    return advantages


def adaptive_trace(lengths: Sequence[int], *, alpha: float) -> Float64Array:
    """lambda = 1 - 1 / (alpha l), [S], at least 0: VAPO (arXiv 2504.05118).

    The sum of GAE's weights, 1 / (1 - lambda), is then in proportion to the answer's length.
    """
    traces: Float64Array = np.maximum(0.0, 1.0 - 1.0 / (alpha * np.asarray(lengths, np.float64)))
    return traces


def advantages_and_returns(
    rewards: Sequence[Float64Array], values: Sequence[Float64Array], settings: CriticConfig
) -> list[tuple[Float64Array, Float64Array]]:
    """Of each completion: A_t for the policy and R_t = A_t + V_t for the critic to learn, [L_i].

    The two may have lambdas of their own (decoupled GAE, VC-PPO, arXiv 2503.01491).
    """
    lengths = [len(row) for row in rewards]
    padded_rewards, padded_values = _padded(rewards), _padded(values)
    trace: float | Float64Array = settings.gae_lambda
    if settings.length_adaptive > 0:
        trace = adaptive_trace(lengths, alpha=settings.length_adaptive)
    advantages, targets = (
        generalized_advantages(
            padded_rewards, padded_values, discount=settings.discount, trace=item
        )
        for item in (trace, settings.value_lambda)
    )
    returns = targets + padded_values
    return [(advantages[row, :length], returns[row, :length]) for row, length in enumerate(lengths)]


def _padded(rows: Sequence[Float64Array]) -> Float64Array:
    """[S, longest], zeros behind the ends."""
    padded = np.zeros((len(rows), max((len(row) for row in rows), default=0)))
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float
) -> Tensor:
    """max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2, [T]; ``clip`` 0: no clip.

    Value clipping of PPO's reference code, with returns R = A + V_old.
    """
    plain = (values - returns).square()
    if clip > 0:
        near = old_values + (values - old_values).clamp(-clip, clip)
        plain = torch.maximum(plain, (near - returns).square())
    return plain / 2


def explained_variance(
    *,
    count: float,
    returns: float,
    returns_squared: float,
    residuals: float,
    residuals_squared: float,
) -> float:
    """1 - Var(R - V) / Var(R) from sums over ``count`` tokens; 0 where R is constant.

    1 for a perfect critic, 0 for a constant one, below 0 for one that is worse than none at all.
    ``residuals`` are R - V.
    """
    variance = returns_squared / count - (returns / count) ** 2
    unexplained = residuals_squared / count - (residuals / count) ** 2
    return 1.0 - unexplained / variance if variance > 0 else 0.0
