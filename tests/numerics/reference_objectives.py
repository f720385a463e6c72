"""Every objective as its paper writes it: plain Python, one loop a sum, one token at a time.

No tensors, no packing, no streaming: lists of log-probabilities, one list a completion. Beside
``reference_grpo`` these are the second implementation that the learner must agree with, in value
and, through :func:`slope`, in gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.numerics.reference_grpo import clip_term

Rows = Sequence[Sequence[float]]


@dataclass
class Sample:
    """Completions of one batch; every field but ``advantages`` has one number a token."""

    policy: list[list[float]]
    behavior: list[list[float]]
    advantages: list[float]
    reference: list[list[float]]
    lags: list[list[int]]
    entropy: list[list[float]] = field(default_factory=list)


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """RLOO, 2402.14740: R(y_i) - 1/(k-1) sum_{j != i} R(y_j)."""
    result = []
    for i, reward in enumerate(rewards):
        others = [other for j, other in enumerate(rewards) if j != i]
        result.append(reward - sum(others) / len(others))
    return result


def process(
    steps: Rows, ends: Sequence[Sequence[int]], lengths: Sequence[int]
) -> list[list[float]]:
    """DeepSeekMath 4.1.3: A_{i,t} = sum over steps with index(j) >= t of the normalised reward."""
    pooled = [reward for output in steps for reward in output]
    mean = sum(pooled) / len(pooled)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in pooled) / len(pooled))
    return [
        [
            sum(
                (reward - mean) / deviation if deviation else 0.0
                for reward, end in zip(steps[i], ends[i], strict=True)
                if end >= t
            )
            for t in range(length)
        ]
        for i, length in enumerate(lengths)
    ]


def gae(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """1506.02438 eq. 16 as the double sum that it is; V after the end is 0."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * nxt - v for r, v, nxt in zip(rewards, values, after, strict=True)]
    return [
        sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:]))
        for t in range(len(deltas))
    ]


def critic_signals(
    rewards: Sequence[float],
    values: Sequence[float],
    *,
    gamma: float,
    lam: float,
    value_lam: float,
) -> tuple[list[float], list[float]]:
    """PPO's advantages and what its critic learns: A + V, where A may have a lambda of its own."""
    targets = gae(rewards, values, gamma, value_lam)
    return gae(rewards, values, gamma, lam), [a + v for a, v in zip(targets, values, strict=True)]


def value_loss(value: float, old: float, target: float, clip: float) -> float:
    """PPO's clipped value loss of one token."""
    near = min(max(value, old - clip), old + clip) if clip else value
    return max((value - target) ** 2, (near - target) ** 2) / 2


def token_ratio(policy: Sequence[float], base: Sequence[float], level: str, t: int) -> float:
    """pi / base: of token t, of the sequence (R1 eq. 1), or its |o|-th root (GSPO eq. 7)."""
    if level == "token":
        return math.exp(policy[t]) / math.exp(base[t])
    product = 1.0
    for p, b in zip(policy, base, strict=True):
        product *= math.exp(p) / math.exp(b)
    return product if level == "sequence" else product ** (1.0 / len(policy))


def surrogate(
    kind: str,
    ratio: float,
    held_ratio: float,
    logprob: float,
    advantage: float,
    low: float,
    high: float,
    dual: float,
) -> float:
    """One token; ``held_ratio`` is the ratio as it was, which a stop-gradient sees."""
    if kind == "reinforce":
        return advantage * logprob
    if kind == "cispo":
        return min(max(held_ratio, 1 - low), 1 + high) * advantage * logprob
    value = clip_term(ratio, advantage, low, high)
    return max(value, dual * advantage) if dual and advantage < 0 else value


def correction_weight(
    kind: str,
    proximal: Sequence[float],
    behavior: Sequence[float],
    t: int,
    floor: float,
    cap: float,
) -> float:
    """w of one token: TIS min(k, C); IcePop k inside [alpha, beta] and 0 outside."""
    if kind == "none":
        return 1.0
    level = "sequence" if kind.startswith("sequence") else "token"
    k = token_ratio(proximal, behavior, level, t)
    if kind.endswith("truncate"):
        return min(k, cap)
    return k if floor <= k <= cap else 0.0


def kl(kind: str, logprob: float, reference: float) -> float:
    """Schulman's estimators of KL(pi || ref) from one token of pi."""
    ratio = math.exp(reference) / math.exp(logprob)
    if kind == "k1":
        return -math.log(ratio)
    if kind == "k2":
        return math.log(ratio) ** 2 / 2
    return ratio - 1.0 - math.log(ratio)


def proximal(
    kind: str, held: Sequence[float], behavior: Sequence[float], lags: Sequence[int]
) -> list[float]:
    """log pi_prox: the policy as it was, the sampler, or A-3PO's interpolation by a token's lag."""
    if kind == "behavior":
        return list(behavior)
    if kind == "policy":
        return list(held)
    return [
        b / lag + (1 - 1 / lag) * p if lag else p
        for p, b, lag in zip(held, behavior, lags, strict=True)
    ]


def token_values(
    sample: Sample, settings: dict[str, object], held: Sequence[Sequence[float]] | None = None
) -> list[list[float]]:
    """J_t of every token. ``held``: log-probabilities that stop-gradients see, else the policy's.

    ``settings`` are the keys of ``[learner.loss]``, all of them.
    """
    held = sample.policy if held is None else held
    s: dict[str, object] = settings
    low, high, beta = _number(s, "clip_low"), _number(s, "clip_high"), _number(s, "kl_coefficient")
    values = []
    for i, policy in enumerate(sample.policy):
        behavior, reference = sample.behavior[i], sample.reference[i]
        anchor = proximal(str(s["proximal"]), held[i], behavior, sample.lags[i])
        divergence = sum(b - p for p, b in zip(held[i], behavior, strict=True)) / len(policy)
        bound = _number(s, "max_divergence")
        dropped = bound > 0 and sample.advantages[i] < 0 and divergence > bound
        row = []
        for t, logprob in enumerate(policy):
            advantage = sample.advantages[i]
            if s["kl_in"] == "reward" and s["baseline"] != "critic":
                for later in range(t, len(policy)):
                    advantage -= beta * kl(str(s["kl_estimator"]), held[i][later], reference[later])
            level = str(s["ratio_level"])
            value = 0.0
            if not dropped:
                value = correction_weight(
                    str(s["correction"]),
                    anchor,
                    behavior,
                    t,
                    _number(s, "importance_floor"),
                    _number(s, "importance_cap"),
                ) * surrogate(
                    str(s["surrogate"]),
                    token_ratio(policy, anchor, level, t),
                    token_ratio(held[i], anchor, level, t),
                    logprob,
                    advantage,
                    low,
                    high,
                    _number(s, "dual_clip"),
                )
            if s["kl_in"] == "loss" and beta:
                value -= beta * kl(str(s["kl_estimator"]), logprob, reference[t])
            if sample.entropy:
                value += _number(s, "entropy_coefficient") * sample.entropy[i][t]
            row.append(value)
        values.append(row)
    return values


def slope(function: Callable[[float], float], at: float, step: float = 1e-6) -> float:
    """Central difference."""
    return (function(at + step) - function(at - step)) / (2 * step)


def _number(settings: dict[str, object], key: str) -> float:
    value = settings[key]
    assert isinstance(value, int | float)
    return float(value)
