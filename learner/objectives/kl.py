"""Estimators of KL(policy || reference) from one sampled token, and the penalty made of them.

With d = log pi_ref - log pi_theta of a token that pi_theta sampled (Schulman, "Approximating KL
divergence", 2020). In the loss, what counts is the gradient in log pi_theta:

| | value | mean | gradient in log pi_theta |
|---|---|---|---|
| k1 | -d | exact, high variance | 1: in the mean no force at all |
| k2 | d^2 / 2 | biased | -d: in the mean the gradient of the KL itself |
| k3 | exp(d) - d - 1 | exact, >= 0 | 1 - exp(d): the gradient of KL(reference || policy) |

In the reward every one of them acts through its value (k1: the gradient of the KL in the mean).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from learner.objectives.ratios import MAX_LOG_RATIO
from learner.objectives.segments import sum_to_go

KlEstimator = Literal["k1", "k2", "k3"]


def k1_kl(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log pi_theta - log pi_ref, [T]; may be negative."""
    return logprobs - reference_logprobs


def k2_kl(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """(log pi_theta - log pi_ref)^2 / 2, [T]."""
    return (logprobs - reference_logprobs).square() / 2


def k3_kl(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = reference - log p, [T], >= 0: DeepSeekMath (arXiv 2402.03300) eq. 4.

    Its gradient in log p is 1 - exp(d), which is 0 where the two agree. d is clamped to +-20.
    """
    difference = (reference_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(difference) - difference


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, *, estimator: KlEstimator) -> Tensor:
    """The estimator of that name, [T]."""
    if estimator == "k1":
        return k1_kl(logprobs, reference_logprobs)
    if estimator == "k2":
        return k2_kl(logprobs, reference_logprobs)
    return k3_kl(logprobs, reference_logprobs)


def kl_return_to_go(kl: Tensor, lengths: Tensor) -> Tensor:
    """sum over t' >= t of kl_t' in the same sequence, [T], without a gradient.

    What a penalty of -beta kl_t on the reward of each token takes from the advantage of token t:
    DeepSeekMath eq. 2 (PPO's way) and REINFORCE++ (arXiv 2501.03262), undiscounted. The
    advantage it is taken from is normalised already, so that beta keeps its unit.
    """
    return sum_to_go(kl.detach(), lengths)
