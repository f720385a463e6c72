"""Corrections for samples that are not the policy's own: stale, or from another machine's kernels.

Notation: mu is the policy that sampled (``behavior_logprobs``), pi_prox the proximal policy that
the clip is anchored at, k = pi_prox / mu. A correction is a weight [T] on the surrogate, without a
gradient; every token that it drops still counts in the denominator.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from learner.objectives.ratios import importance_ratio, sequence_ratio
from learner.objectives.segments import sequence_mean

Correction = Literal["none", "truncate", "mask", "sequence-truncate", "sequence-mask"]


def truncated_weight(ratio: Tensor, *, importance_cap: float) -> Tensor:
    """min(k, C): truncated importance sampling, IMPALA's rho-bar (arXiv 1802.01561, section 4.1).

    Over tokens it is TIS (Yao et al., "Your efficient RL framework secretly brings you off-policy
    RL training", 2025); over sequences the same with the product of the ratios.
    """
    return ratio.clamp(max=importance_cap)


def masked_weight(ratio: Tensor, *, importance_floor: float, importance_cap: float) -> Tensor:
    """k where alpha <= k <= beta, else 0.

    IcePop (Ring-1T, arXiv 2510.18855), M(k; alpha, beta) with alpha = 0.5, beta = 5: a token on
    which trainer and sampler disagree that much is dropped, not damped. With the ratio of the whole
    sequence: masked importance sampling, one mask for all of its tokens.
    """
    return torch.where(_inside(ratio, importance_floor, importance_cap), ratio, 0.0)


def off_policy_weight(
    proximal_logprobs: Tensor,
    behavior_logprobs: Tensor,
    lengths: Tensor,
    *,
    correction: Correction,
    importance_floor: float,
    importance_cap: float,
) -> tuple[Tensor, Tensor]:
    """The weight of ``correction`` and boolean [T]: where it is not simply k."""
    if correction == "none":
        ones = torch.ones_like(behavior_logprobs)
        return ones, torch.zeros_like(ones, dtype=torch.bool)
    if correction in ("sequence-truncate", "sequence-mask"):
        ratio = sequence_ratio(proximal_logprobs, behavior_logprobs, lengths).detach()
    else:
        ratio = importance_ratio(proximal_logprobs, behavior_logprobs).detach()
    if correction in ("truncate", "sequence-truncate"):
        return truncated_weight(ratio, importance_cap=importance_cap), ratio > importance_cap
    weight = masked_weight(ratio, importance_floor=importance_floor, importance_cap=importance_cap)
    return weight, ~_inside(ratio, importance_floor, importance_cap)


def interpolated_logprobs(
    policy_logprobs: Tensor, behavior_logprobs: Tensor, lags: Tensor
) -> Tensor:
    """log pi_prox = a log mu + (1 - a) log pi_theta with a = 1 / lag, 0 at lag 0; no gradient.

    A-3PO (Li et al., arXiv 2512.06547): the policy of one step ago, as if each of ``lags``
    steps since sampling had moved a token's log-probability by the same amount. It saves the
    forward pass that would recompute pi_prox, and its clip is live from lag 1 on.
    """
    steps = lags.to(policy_logprobs.dtype)
    share = torch.where(steps > 0, 1.0 / steps.clamp(min=1.0), 0.0)
    return (share * behavior_logprobs + (1.0 - share) * policy_logprobs).detach()


def divergent_sequences(
    policy_logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    lengths: Tensor,
    *,
    max_divergence: float,
) -> Tensor:
    """Boolean [T]: tokens of bad answers that the policy has moved too far away from.

    Off-policy sequence masking, DeepSeek-V3.2 (arXiv 2512.02556) eq. 9: a sequence with A < 0 and
    mean_t log(mu / pi_theta) > delta teaches nothing about the policy as it is.
    """
    divergence = sequence_mean(behavior_logprobs - policy_logprobs.detach(), lengths)
    return (advantages < 0) & (divergence > max_divergence)


def _inside(ratio: Tensor, low: float, high: float) -> Tensor:
    return (ratio >= low) & (ratio <= high)
