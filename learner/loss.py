"""The policy objective, one named pure function a term; every result is a sum, never a mean.

Notation, per token t of a completion: pi_theta is the policy being trained (``policy_logprobs``),
mu the policy that sampled (``behavior_logprobs``), pi_prox the policy at the start of the update
(``proximal_logprobs``), A the advantage, r = pi_theta / pi_prox the importance ratio, w the
off-policy weight.

**Default objective.** J = sum_t w_t min(r_t A_t, clip(r_t, 1 - e_low, 1 + e_high) A_t) with
w = min(pi_prox / mu, C), no gradient through w. This is the decoupled objective of Hilton et al.
(arXiv 2110.00641; used asynchronously by AReaL, arXiv 2505.24298): the clip keeps the policy near
where the update began, and being off-policy is corrected by a weight of its own, capped by C as
rho-bar caps it in IMPALA (Espeholt et al., arXiv 1802.01561, section 4.1). With one update a batch
pi_prox *is* the policy now, so r = 1 in value, the clip never binds, and the gradient is the
truncated importance sampling estimator sum_t min(pi_theta / mu, C) A_t grad log pi_theta: at lag 0
the plain policy gradient, at any lag the token-wise corrected one as long as the cap does not bind.
``proximal_logprobs`` differ from the policy only from the second update on.

**Without the correction** (``importance_cap`` 0) the ratio is taken against mu itself and the clip
is live: J = sum_t min(rho_t A_t, clip(rho_t) A_t) with rho = pi_theta / mu, DeepSeekMath (arXiv
2402.03300) eq. 3 with pi_old = mu. Tokens past the clip then lose their gradient instead of being
reweighted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token", "sequence", "constant"]

MAX_LOG_RATIO = 20.0
"""exp stays finite in float32 and in sums of it; a ratio of e^20 is past every cap and clip."""


def importance_ratio(log_probs: Tensor, base_log_probs: Tensor) -> Tensor:
    """exp(log_probs - base_log_probs), [T], with the exponent clamped to +-20."""
    return (log_probs - base_log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), [T].

    PPO (Schulman et al., arXiv 1707.06347) eq. 7; DeepSeekMath eq. 3; separate bounds are DAPO's
    (Yu et al., arXiv 2503.14476) eq. 8.
    """
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


def clip_binds(ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """Boolean [T]: tokens whose gradient the clip removes."""
    above = (ratio > 1.0 + clip_high) & (advantages > 0)
    below = (ratio < 1.0 - clip_low) & (advantages < 0)
    return above | below


def truncated_weight(
    proximal_logprobs: Tensor, behavior_logprobs: Tensor, *, importance_cap: float
) -> Tensor:
    """min(pi_prox / mu, C), [T], without a gradient: IMPALA's truncated weight, section 4.1."""
    ratio = importance_ratio(proximal_logprobs, behavior_logprobs).detach()
    return ratio.clamp(max=importance_cap)


def k3_kl(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = reference - log p, [T], >= 0: DeepSeekMath eq. 4.

    Schulman's k3 estimator of KL(p || reference) for tokens drawn from p. Its gradient in log p is
    1 - exp(d), which is 0 where the two agree. d is clamped to +-20.
    """
    difference = (reference_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(difference) - difference


@dataclass(frozen=True, kw_only=True)
class ObjectiveTerms:
    """Per-token terms of the objective, [T] each; only ``objective`` carries a gradient."""

    objective: Tensor
    """What gradient ascent raises: surrogate minus the KL penalty."""
    behavior_ratio: Tensor
    """pi_theta / mu, unclipped."""
    clipped: Tensor
    """1 where the clip removed the gradient."""
    capped: Tensor
    """1 where the off-policy weight was truncated."""


def policy_objective(
    *,
    policy_logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    importance_cap: float,
    proximal_logprobs: Tensor | None = None,
    reference_logprobs: Tensor | None = None,
    kl_coefficient: float = 0.0,
) -> ObjectiveTerms:
    """Per-token objective, all arguments [T]; the module docstring says which and why.

    ``proximal_logprobs`` of None means the policy itself: exact with one update a batch.
    """
    behavior_ratio = importance_ratio(policy_logprobs, behavior_logprobs).detach()
    if importance_cap > 0:
        proximal = policy_logprobs if proximal_logprobs is None else proximal_logprobs
        proximal = proximal.detach()
        weight = truncated_weight(proximal, behavior_logprobs, importance_cap=importance_cap)
        ratio = importance_ratio(policy_logprobs, proximal)
        capped = importance_ratio(proximal, behavior_logprobs) > importance_cap
    else:
        weight = torch.ones_like(behavior_logprobs)
        ratio = importance_ratio(policy_logprobs, behavior_logprobs)
        capped = torch.zeros_like(behavior_logprobs, dtype=torch.bool)
    surrogate = clipped_surrogate(ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    objective = weight * surrogate
    if reference_logprobs is not None and kl_coefficient > 0:
        objective = objective - kl_coefficient * k3_kl(policy_logprobs, reference_logprobs)
    clipped = clip_binds(ratio.detach(), advantages, clip_low=clip_low, clip_high=clip_high)
    return ObjectiveTerms(
        objective=objective, behavior_ratio=behavior_ratio, clipped=clipped, capped=capped
    )


def token_weight(aggregation: Aggregation, trained_length: int) -> float:
    """Factor of every trained token of one completion in the unnormalised sum.

    ``token`` and ``constant`` give all tokens the same voice; ``sequence`` divides by their number.
    """
    return 1.0 / trained_length if aggregation == "sequence" else 1.0


def denominator(
    aggregation: Aggregation, trained_lengths: Sequence[int], *, max_tokens: int
) -> float:
    """What the sum over all trained tokens is divided by; denominators of parts add up.

    ``trained_lengths`` counts the trained tokens of each completion, those that are not masked.
    ``token``: all tokens (DAPO eq. 8). ``sequence``: all sequences, GRPO's mean of means
    (DeepSeekMath eq. 3). ``constant``: ``max_tokens`` for each sequence (Dr. GRPO, section 3.2).
    """
    if aggregation == "token":
        return float(math.fsum(trained_lengths))
    if aggregation == "sequence":
        return float(len(trained_lengths))
    return float(max_tokens * len(trained_lengths))
