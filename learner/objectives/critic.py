"""What PPO with a critic needs besides the policy objective, the baseline that GRPO does without.

Each function is about one completion of L tokens, in float64. Value V_t is the critic's guess,
before token t, of the rewards still to come; after the last token there are none.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Float64Array = npt.NDArray[np.float64]


def token_rewards(
    outcome: float, logprobs: Float64Array, reference_logprobs: Float64Array, *, beta: float
) -> Float64Array:
    """r_t = [t is last] outcome - beta log(pi / pi_ref), [L]: DeepSeekMath (2402.03300) eq. 2."""
    rewards = -beta * (logprobs - reference_logprobs)
    rewards[-1] += outcome
    return rewards


def generalized_advantages(
    rewards: Float64Array, values: Float64Array, *, discount: float, trace: float
) -> Float64Array:
    """A_t = sum_k (gamma lambda)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t, [L].

    GAE (Schulman et al., arXiv 1506.02438) eq. 16; ``discount`` is gamma, ``trace`` lambda. With
    gamma = lambda = 1 it is the return less the value.
    """
    advantages = np.zeros_like(rewards)
    next_value = following = 0.0
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t] + discount * next_value - values[t]
        advantages[t] = following = delta + discount * trace * following
        next_value = values[t]
    return advantages


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


def explained_variance(values: Float64Array, returns: Float64Array) -> float:
    """1 - Var(R - V) / Var(R): 1 for a perfect critic, 0 for a constant one; 0 where R is constant.

    Below 0 the critic is worse than no critic at all.
    """
    variance = float(returns.var())
    return 1.0 - float((returns - values).var()) / variance if variance > 0 else 0.0
