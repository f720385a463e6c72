"""The policy objective: the terms that ``[learner.loss]`` names, put together, a token each.

Notation, per token t of a completion: pi_theta is the policy being trained (``policy_logprobs``),
mu the policy that sampled (``behavior_logprobs``), pi_prox the policy that the clip is anchored at,
A the advantage, r = pi_theta / pi_prox the importance ratio, w the off-policy weight. Then

    J_t = w_t m_t S(r_t, A_t, log pi_theta) - beta KL_t + c H_t

with S one of ``surrogates``, w one of ``corrections``, m 0 on sequences that have diverged and 1
elsewhere, KL one of ``kl`` (or taken from A beforehand: ``kl_in = "reward"``), H the entropy.

**Default.** w = min(pi_prox / mu, C), S the clip, no gradient through w. This is the decoupled
objective of Hilton et al. (arXiv 2110.00641; used asynchronously by AReaL, arXiv 2505.24298): the
clip keeps the policy near where the update began, and being off-policy is corrected by a weight of
its own. With one update a batch, pi_prox *is* the policy now, so r = 1 in value, the clip never
binds, and the gradient is truncated importance sampling, sum_t min(pi_theta / mu, C) A_t
grad log pi_theta: at lag 0 the plain policy gradient, at any lag the token-wise corrected one as
long as the cap does not bind.

**Coupled** (``proximal = "behavior"``): r is taken against mu itself and the clip is live, as in
DeepSeekMath (arXiv 2402.03300) eq. 3 with pi_old = mu. Tokens past the clip then lose their
gradient instead of being reweighted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import LossConfig
from learner.objectives.corrections import (
    divergent_sequences,
    interpolated_logprobs,
    off_policy_weight,
)
from learner.objectives.kl import kl_estimate, kl_return_to_go
from learner.objectives.ratios import importance_ratio, policy_ratio
from learner.objectives.surrogates import (
    cispo_surrogate,
    clip_binds,
    clipped_surrogate,
    dual_clipped,
    outside_clip,
    reinforce_surrogate,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInputs:
    """What the objective is computed from: [T] each, sequences next to one another."""

    policy_logprobs: Tensor
    """Nats, with a gradient."""
    behavior_logprobs: Tensor
    advantages: Tensor
    lengths: Tensor
    """int64 [S], tokens of each sequence; they add up to T."""
    lags: Tensor | None = None
    """int64, steps since the token itself was sampled; ``proximal = "interpolated"`` asks."""
    proximal_logprobs: Tensor | None = None
    """Of the policy that the batch began with; None: it is the policy itself (first update)."""
    reference_logprobs: Tensor | None = None
    entropy: Tensor | None = None
    """Nats, with a gradient; only an entropy bonus asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveTerms:
    """Per-token terms of the objective, [T] each; only ``objective`` carries a gradient."""

    objective: Tensor
    """What gradient ascent raises."""
    behavior_ratio: Tensor
    """pi_theta / mu, unclipped."""
    clipped: Tensor
    """1 where the clip removed the gradient, or clipped CISPO's weight."""
    capped: Tensor
    """1 where the off-policy weight was truncated or masked, or the sequence has diverged."""
    reference_kl: Tensor | None
    """The KL estimate; None without a reference."""
    ratio: Tensor
    """pi_theta / pi_prox at ``ratio_level``, what the clip looks at."""
    weight: Tensor
    """The off-policy weight w, after its cap."""


def policy_objective(settings: LossConfig, tokens: TokenInputs) -> ObjectiveTerms:
    """J_t and what is worth knowing about it; the module docstring has the formula."""
    policy, behavior = tokens.policy_logprobs, tokens.behavior_logprobs
    proximal = proximal_logprobs(settings, tokens)
    weight, capped = _weight(settings, tokens, proximal)
    kl = _reference_kl(settings, tokens)
    ratio = policy_ratio(policy, proximal, tokens.lengths, level=settings.ratio_level)
    advantages = _penalized_advantages(settings, tokens, kl)
    surrogate, clipped = _surrogate(settings, ratio, policy, advantages)
    objective = weight * surrogate
    if settings.max_divergence > 0:
        diverged = _diverged(settings, tokens)
        objective, capped = objective.masked_fill(diverged, 0.0), capped | diverged
    if kl is not None and settings.kl_in == "loss":
        objective = objective - settings.kl_coefficient * kl
    if settings.entropy_coefficient and tokens.entropy is not None:
        objective = objective + settings.entropy_coefficient * tokens.entropy
    return ObjectiveTerms(
        objective=objective,
        behavior_ratio=importance_ratio(policy, behavior).detach(),
        clipped=clipped,
        capped=capped,
        reference_kl=None if kl is None else kl.detach(),
        ratio=ratio.detach(),
        weight=weight.detach(),
    )


def _weight(settings: LossConfig, tokens: TokenInputs, proximal: Tensor) -> tuple[Tensor, Tensor]:
    """w, and where it is not simply pi_prox / mu."""
    return off_policy_weight(
        proximal,
        tokens.behavior_logprobs,
        tokens.lengths,
        correction=settings.correction,
        importance_floor=settings.importance_floor,
        importance_cap=settings.importance_cap,
    )


def _penalized_advantages(settings: LossConfig, tokens: TokenInputs, kl: Tensor | None) -> Tensor:
    """A, less the KL to come where that is a part of the reward."""
    if kl is None or settings.kl_in != "reward" or settings.baseline == "critic":
        return tokens.advantages
    penalty = kl_return_to_go(_rewarded_kl(settings, tokens, kl), tokens.lengths)
    return tokens.advantages - settings.kl_coefficient * penalty


def _diverged(settings: LossConfig, tokens: TokenInputs) -> Tensor:
    """Boolean [T]: where m is 0."""
    return divergent_sequences(
        tokens.policy_logprobs,
        tokens.behavior_logprobs,
        tokens.advantages,
        tokens.lengths,
        max_divergence=settings.max_divergence,
    )


def proximal_logprobs(settings: LossConfig, tokens: TokenInputs) -> Tensor:
    """log pi_prox, [T], without a gradient: mu, the policy, or what lies between them."""
    if settings.proximal == "behavior":
        return tokens.behavior_logprobs
    policy = tokens.policy_logprobs.detach()
    if settings.proximal == "interpolated":
        if tokens.lags is None:
            raise ValueError('proximal = "interpolated" needs the lag of every token')
        return interpolated_logprobs(policy, tokens.behavior_logprobs, tokens.lags)
    recomputed = tokens.proximal_logprobs
    return policy if recomputed is None else recomputed.detach()


def _surrogate(
    settings: LossConfig, ratio: Tensor, logprobs: Tensor, advantages: Tensor
) -> tuple[Tensor, Tensor]:
    """S and where its clip acts."""
    low, high = settings.clip_low, settings.clip_high
    if settings.surrogate == "reinforce":
        return reinforce_surrogate(logprobs, advantages), torch.zeros_like(ratio, dtype=torch.bool)
    if settings.surrogate == "cispo":
        value = cispo_surrogate(ratio, logprobs, advantages, clip_low=low, clip_high=high)
        return value, outside_clip(ratio.detach(), clip_low=low, clip_high=high)
    value = clipped_surrogate(ratio, advantages, clip_low=low, clip_high=high)
    binds = clip_binds(ratio.detach(), advantages, clip_low=low, clip_high=high)
    if settings.dual_clip > 0:
        value = dual_clipped(value, advantages, dual_clip=settings.dual_clip)
        binds = binds | ((advantages < 0) & (ratio.detach() > settings.dual_clip))
    return value, binds


def _rewarded_kl(settings: LossConfig, tokens: TokenInputs, kl: Tensor) -> Tensor:
    """The KL that the reward has: of the policy that the batch began with, in each of its updates.

    With a critic it is a part of the token rewards, and no longer a matter of the objective.
    """
    if tokens.proximal_logprobs is None or tokens.reference_logprobs is None:
        return kl
    return kl_estimate(
        tokens.proximal_logprobs, tokens.reference_logprobs, estimator=settings.kl_estimator
    )


def _reference_kl(settings: LossConfig, tokens: TokenInputs) -> Tensor | None:
    if tokens.reference_logprobs is None or settings.kl_coefficient <= 0:
        return None
    return kl_estimate(
        tokens.policy_logprobs, tokens.reference_logprobs, estimator=settings.kl_estimator
    )
