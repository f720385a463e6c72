"""GRPO as the papers write it: a slow second implementation in numpy, one loop a sum.

Every function follows the notation of its equation and nothing else: no tensors, no packing, no
streaming, no log-space tricks. What the learner computes fast must equal what this computes slowly.

- DeepSeekMath, arXiv 2402.03300: advantages 4.1.2, objective eq. 3, k3 eq. 4.
- Dr. GRPO, arXiv 2503.20783: no std, constant length. DAPO, arXiv 2503.14476: mean over tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def advantages(rewards: Sequence[float], std: str, epsilon: float) -> list[float]:
    """A_i = (r_i - mean(r)) / (std(r) + epsilon), 4.1.2; 0 where all rewards are equal."""
    size = len(rewards)
    mean = sum(rewards) / size
    if all(reward == rewards[0] for reward in rewards):
        return [0.0] * size
    if std == "none":
        return [reward - mean for reward in rewards]
    squares = sum((reward - mean) ** 2 for reward in rewards)
    divisor = math.sqrt(squares / (size if std == "population" else size - 1))
    return [(reward - mean) / (divisor + epsilon) for reward in rewards]


def clip_term(ratio: float, advantage: float, low: float, high: float) -> float:
    """min(r A, clip(r, 1 - low, 1 + high) A), the inner part of eq. 3."""
    clipped = min(max(ratio, 1.0 - low), 1.0 + high)
    return min(ratio * advantage, clipped * advantage)


def k3(logprob: float, reference_logprob: float) -> float:
    """pi_ref / pi_theta - log(pi_ref / pi_theta) - 1, eq. 4, in probabilities."""
    ratio = math.exp(reference_logprob) / math.exp(logprob)
    return ratio - math.log(ratio) - 1.0


def token_objective(
    policy: float,
    behavior: float,
    advantage: float,
    *,
    low: float,
    high: float,
    cap: float,
    beta: float = 0.0,
    reference: float = 0.0,
) -> float:
    """One token of the default objective at one update a batch, or of eq. 3 where ``cap`` is 0."""
    behavior_ratio = math.exp(policy) / math.exp(behavior)
    if cap > 0:
        value = min(behavior_ratio, cap) * clip_term(1.0, advantage, low, high)
    else:
        value = clip_term(behavior_ratio, advantage, low, high)
    return value - beta * k3(policy, reference) if beta else value


def aggregate(values: Sequence[Sequence[float]], how: str, constant_length: int) -> float:
    """The objective from its per-token ``values[i][t]``."""
    if how == "token":
        return sum(map(sum, values)) / sum(map(len, values))
    if how == "sequence":
        return sum(sum(tokens) / len(tokens) for tokens in values) / len(values)
    return sum(map(sum, values)) / (constant_length * len(values))
