"""Surrogates: what gradient ascent raises, from ratio r, advantage A and log-probability.

All arguments and results are [T]; nothing is summed here. Away from its bounds each of them has the
gradient r A grad log pi_theta; they differ in what they do beyond the bounds.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """min(r A, clip(r, 1 - clip_low, 1 + clip_high) A).

    PPO (Schulman et al., arXiv 1707.06347) eq. 7; DeepSeekMath (arXiv 2402.03300) eq. 3; separate
    bounds ("clip-higher") are DAPO's (Yu et al., arXiv 2503.14476) eq. 8; with r of a whole
    sequence it is GSPO (arXiv 2507.18071) eq. 5. Beyond a bound that binds the gradient is 0.
    """
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


def dual_clipped(surrogate: Tensor, advantages: Tensor, *, dual_clip: float) -> Tensor:
    """max(surrogate, c A) where A < 0, the surrogate itself elsewhere; c is ``dual_clip``.

    Dual-clip PPO (Ye et al., arXiv 1912.09729): PPO's clip leaves r A without a bound where
    A < 0. There r > c has no gradient.
    """
    bounded = torch.maximum(surrogate, dual_clip * advantages)
    return torch.where(advantages < 0, bounded, surrogate)


def clip_binds(ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """Boolean [T]: tokens whose gradient the clip removes."""
    above = (ratio > 1.0 + clip_high) & (advantages > 0)
    below = (ratio < 1.0 - clip_low) & (advantages < 0)
    return above | below


def cispo_surrogate(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi_theta.

    CISPO (MiniMax-M1, arXiv 2506.13585) eq. 4 and 5: the weight is clipped, not the update, so that
    no token loses its gradient. The value is not a reward; only the gradient means something.
    """
    weight = ratio.detach().clamp(1.0 - clip_low, 1.0 + clip_high)
    return weight * advantages * logprobs


def outside_clip(ratio: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """Boolean [T]: tokens whose weight CISPO clips."""
    return (ratio > 1.0 + clip_high) | (ratio < 1.0 - clip_low)


def reinforce_surrogate(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """A log pi_theta: REINFORCE (Williams 1992, section 3), as RLOO and REINFORCE++ use it.

    There is no ratio: samples of another policy are corrected by a weight (``corrections``) or not
    at all.
    """
    return advantages * logprobs
