"""Importance ratios: how much likelier one policy makes what another one sampled.

Notation: r = pi_theta / pi_base, per token t or for the whole completion i of length |o_i|.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from learner.objectives.segments import sequence_mean, sequence_sum

RatioLevel = Literal["token", "sequence", "sequence-mean"]

MAX_LOG_RATIO = 20.0
"""exp stays finite in float32 and in sums of it; a ratio of e^20 is past every cap and clip."""


def importance_ratio(log_probs: Tensor, base_log_probs: Tensor) -> Tensor:
    """r_t = exp(log_probs - base_log_probs), [T], with the exponent clamped to +-20.

    The token ratio of PPO (arXiv 1707.06347, section 3) and GRPO (arXiv 2402.03300, eq. 3).
    """
    return _exponential(log_probs - base_log_probs)


def sequence_ratio(log_probs: Tensor, base_log_probs: Tensor, lengths: Tensor) -> Tensor:
    """r_i = pi_theta(o_i | q) / pi_base(o_i | q), the product of the token ratios, at each token.

    GRPO as DeepSeek-R1 writes it (arXiv 2501.12948, eq. 1). Each token of a sequence, [T], carries
    the ratio of the whole.
    """
    return _exponential(sequence_sum(log_probs - base_log_probs, lengths))


def sequence_mean_ratio(log_probs: Tensor, base_log_probs: Tensor, lengths: Tensor) -> Tensor:
    """s_i = (pi_theta(o_i | q) / pi_base(o_i | q))^(1 / |o_i|), at each token, [T].

    The geometric mean of the token ratios: GSPO (Zheng et al., arXiv 2507.18071) eq. 7.
    """
    return _exponential(sequence_mean(log_probs - base_log_probs, lengths))


def policy_ratio(
    log_probs: Tensor, base_log_probs: Tensor, lengths: Tensor, *, level: RatioLevel
) -> Tensor:
    """The ratio of ``level``, [T]; ``lengths``, int64 [S], of the sequences."""
    if level == "sequence":
        return sequence_ratio(log_probs, base_log_probs, lengths)
    if level == "sequence-mean":
        return sequence_mean_ratio(log_probs, base_log_probs, lengths)
    return importance_ratio(log_probs, base_log_probs)


def _exponential(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
