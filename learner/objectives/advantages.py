"""Advantages: from rewards to how much better than expected each answer, or token, is.

No paper says which standard deviation is meant, so both are here under their names, and the number
added to it is a setting of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from common.arrays import Float64Array
from common.config import LossConfig

StdKind = Literal["population", "sample", "none"]


def normalized_advantages(
    rewards: Sequence[float] | Float64Array, *, std: StdKind, epsilon: float
) -> Float64Array:
    """A_i = (r_i - mean(r)) / (std(r) + epsilon), [N], over whatever the rewards are of.

    Over the completions of the *same* prompt: GRPO's outcome supervision (DeepSeekMath, arXiv
    2402.03300, section 4.1.2), and with ``none`` for the divisor Dr. GRPO (arXiv 2503.20783,
    section 3.2). Over a whole batch: REINFORCE++ (arXiv 2501.03262). ``sample`` divides by
    N - 1. Equal rewards, or one, say nothing about which answer is better: all advantages are
    exactly 0.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.size == 0 or np.all(values == values[0]):
        return np.zeros_like(values)
    centred: Float64Array = values - values.mean()
    return scaled_advantages(centred, values, std=std, epsilon=epsilon)


def leave_one_out_advantages(rewards: Sequence[float] | Float64Array) -> Float64Array:
    """A_i = r_i - mean of the other rewards of the group, [G]; a group of one has advantage 0.

    RLOO (Kool et al. 2019; Ahmadian et al., arXiv 2402.14740). It is G / (G - 1) times
    r_i - mean(r), and unlike that an unbiased estimate.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.size < 2 or np.all(values == values[0]):
        return np.zeros_like(values)
    others: Float64Array = (values.sum() - values) / (values.size - 1)
    return values - others


def scaled_advantages(
    advantages: Float64Array, rewards: Float64Array, *, std: StdKind, epsilon: float
) -> Float64Array:
    """``advantages`` divided by std(rewards) + epsilon; with ``none`` as they are."""
    if std == "none":
        return advantages
    degrees_of_freedom = 1 if std == "sample" else 0
    scaled: Float64Array = advantages / (rewards.std(ddof=degrees_of_freedom) + epsilon)
    return scaled


def planned_advantages(rewards: Sequence[float], settings: LossConfig) -> Float64Array:
    """What a group alone can say of its answers, [G], by ``baseline`` and ``advantage_over``.

    Under ``advantage_over = "batch"`` the divisor, and under ``baseline = "batch-mean"`` the
    baseline too, wait for :func:`batch_advantages`. With a critic it is the reward itself: the
    outcome of the token rewards (``critic``).
    """
    values = np.asarray(rewards, dtype=np.float64)
    std: StdKind = settings.advantage_std if settings.advantage_over == "group" else "none"
    if settings.baseline in ("batch-mean", "critic"):
        return values
    if settings.baseline == "leave-one-out":
        centred = leave_one_out_advantages(values)
        return scaled_advantages(centred, values, std=std, epsilon=settings.advantage_epsilon)
    return normalized_advantages(values, std=std, epsilon=settings.advantage_epsilon)


def batch_advantages(planned: Sequence[float], settings: LossConfig) -> Float64Array:
    """The planned advantages of all rollouts of a batch, [N], normalised together.

    REINFORCE++ (arXiv 2501.03262), also with a baseline of the group: one number a rollout, however
    long it is.
    """
    return normalized_advantages(
        planned, std=settings.advantage_std, epsilon=settings.advantage_epsilon
    )
