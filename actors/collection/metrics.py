"""Evaluation metrics: pass@1 with its error, unbiased pass@k, majority vote. Pure functions.

Rules where the literature leaves a choice open:

- *pass@1* is the mean over all samples (DeepSeek-R1, arXiv 2501.12948, section 3.1), not one greedy
  answer. Samples of one prompt are not independent, so its error is the standard error of a mean of
  clusters, exact up to the normal approximation and without resampling.
- *Majority vote* (cons@k): answers vote by :func:`common.answers.canonical_answer`, so ``1/2`` and
  ``.5`` are one answer; a completion without an answer does not vote; of classes with equally many
  votes wins the one that had so many first, in sample order.
- maj@k and pass@k below the number of samples: the vote uses the first k samples, pass@k all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.answers import canonical_answer

NORMAL_95 = 1.959963984540054
"""Two-sided 95% quantile of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
class ScoredSample:
    """One sample as the metrics see it; ``format`` is None where it was not a reward term."""

    answer: str | None
    accuracy: float
    format: float | None
    reward: float
    num_tokens: int
    is_truncated: bool


ScoredPrompt = Sequence[ScoredSample]


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased probability that one of ``k`` samples is right: 1 - C(n - c, k) / C(n, k).

    Chen et al., arXiv 2107.03374, equation 1. Raises ``ValueError`` unless
    0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= num_correct <= num_samples and 1 <= k <= num_samples):
        raise ValueError(
            f"need 0 <= c <= n and 1 <= k <= n, got {num_samples=} {num_correct=} {k=}"
        )
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def plurality(answers: Sequence[str | None]) -> int | None:
    """Position of the first sample that gave the winning answer, None when nobody voted."""
    votes: Counter[str] = Counter()
    first: dict[str, int] = {}
    winner: str | None = None
    for position, answer in enumerate(answers):
        if answer is None:
            continue
        choice = canonical_answer(answer)
        votes[choice] += 1
        first.setdefault(choice, position)
        if winner is None or votes[choice] > votes[winner]:
            winner = choice
    return None if winner is None else first[winner]


def majority_accuracy(samples: ScoredPrompt) -> float:
    """Accuracy of the answer that most samples gave, 0 when none gave an answer."""
    position = plurality([sample.answer for sample in samples])
    return 0.0 if position is None else samples[position].accuracy


def cluster_mean(clusters: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Mean over all values and its standard error, values of one cluster being dependent.

    With cluster sums S_i, sizes n_i, m clusters and mean p = sum S_i / sum n_i the error is
    sqrt(m / (m - 1) * sum (S_i - p n_i)^2) / sum n_i: the ratio estimator of cluster sampling
    (Cochran, Sampling Techniques, section 9A), for equal sizes the deviation of the cluster means
    over sqrt(m). It is infinite for a single cluster, which says nothing about others.
    """
    total = sum(len(cluster) for cluster in clusters)
    if total == 0:
        raise ValueError("a mean needs at least one value")
    mean = math.fsum(value for cluster in clusters for value in cluster) / total
    if len(clusters) < 2:
        return mean, math.inf
    residuals = math.fsum((math.fsum(cluster) - mean * len(cluster)) ** 2 for cluster in clusters)
    return mean, math.sqrt(len(clusters) / (len(clusters) - 1) * residuals) / total


def interval_95(mean: float, standard_error: float) -> tuple[float, float]:
    """Normal 95% interval of a share, cut at 0 and 1."""
    half = NORMAL_95 * standard_error
    return max(0.0, mean - half), min(1.0, mean + half)


def summarize(prompts: Sequence[ScoredPrompt]) -> dict[str, Any]:
    """All metrics of an evaluation as JSON values; raises ``ValueError`` when it is empty."""
    mean, error = cluster_mean([[sample.accuracy for sample in prompt] for prompt in prompts])
    samples = [sample for prompt in prompts for sample in prompt]
    sizes = _vote_sizes(max(len(prompt) for prompt in prompts))
    formats = [sample.format for sample in samples if sample.format is not None]
    return {
        "num_prompts": len(prompts),
        "num_samples": len(samples),
        "pass_at_1": mean,
        "pass_at_1_standard_error": error if math.isfinite(error) else None,
        "pass_at_1_interval_95": list(interval_95(mean, error)),
        "pass_at": {str(k): _mean_pass_at(prompts, k) for k in sizes},
        "maj_at": {str(k): _mean_majority(prompts, k) for k in sizes},
        "format_mean": _mean(formats) if formats else None,
        "reward_mean": _mean([sample.reward for sample in samples]),
        "mean_length": _mean([sample.num_tokens for sample in samples]),
        "truncated_ratio": _mean([sample.is_truncated for sample in samples]),
        "unanswered_ratio": _mean([sample.answer is None for sample in samples]),
    }


def _vote_sizes(num_samples: int) -> list[int]:
    """1, 2, 4, ... and the number of samples itself."""
    powers = [2**exponent for exponent in range(num_samples.bit_length())]
    return sorted({*powers, num_samples})


def _mean_pass_at(prompts: Sequence[ScoredPrompt], k: int) -> float:
    return _mean(
        [
            pass_at_k(len(prompt), sum(sample.accuracy >= 1.0 for sample in prompt), k)
            for prompt in prompts
            if len(prompt) >= k
        ]
    )


def _mean_majority(prompts: Sequence[ScoredPrompt], k: int) -> float:
    return _mean([majority_accuracy(prompt[:k]) for prompt in prompts if len(prompt) >= k])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
