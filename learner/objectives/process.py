"""Process supervision: rewards of single steps -> an advantage for every token.

GRPO with a process reward model, DeepSeekMath (arXiv 2402.03300), section 4.1.3. The rewards of all
steps of all outputs of a group are normalised together,

    r~_i^index(j) = (r_i^index(j) - mean(R)) / std(R),

and a token's advantage is the sum over the steps that end at it or after it,

    A_i,t = sum over index(j) >= t of r~_i^index(j).

With one step an output, at its end, that is outcome supervision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.arrays import Float64Array
from learner.objectives.advantages import StdKind, normalized_advantages


def normalized_steps(
    step_rewards: Sequence[Sequence[float]], *, std: StdKind, epsilon: float
) -> list[Float64Array]:
    """r~ of each step, an array an output; ``step_rewards[i][j]`` is of step j of output i."""
    pooled = [reward for output in step_rewards for reward in output]
    ends = np.cumsum([len(output) for output in step_rewards])
    return np.split(normalized_advantages(pooled, std=std, epsilon=epsilon), ends[:-1])


def token_advantages(
    step_advantages: Sequence[float] | Float64Array, step_ends: Sequence[int], length: int
) -> Float64Array:
    """A of each token, [length]; step j ends with the token of index ``step_ends[j]``.

    Raises ``ValueError`` where an end lies outside the output or the two differ in number.
    """
    if any(not 0 <= end < length for end in step_ends):
        raise ValueError(f"steps must end inside an output of {length} tokens, got {step_ends}")
    values = np.zeros(length)
    for end, advantage in zip(step_ends, step_advantages, strict=True):
        values[end] += advantage
    return np.cumsum(values[::-1])[::-1].copy()
