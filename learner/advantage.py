"""Group-relative advantages: rewards of one prompt's completions -> one advantage each.

Sources: Shao et al., DeepSeekMath (arXiv 2402.03300), section 4.1.2, "outcome supervision":
A_i = (r_i - mean(r)) / std(r) over the completions of the *same* prompt, given to every token of
completion i. Liu et al., Dr. GRPO (arXiv 2503.20783), section 3.2: A_i = r_i - mean(r). No paper
says which standard deviation is meant, so both are here under their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

StdKind = Literal["population", "sample", "none"]
Float64Array = npt.NDArray[np.float64]


def group_advantages(
    rewards: Sequence[float] | Float64Array, *, std: StdKind, epsilon: float
) -> Float64Array:
    """Advantages [G] of the rewards [G] of one group.

    ``std`` is the divisor (``sample`` divides by G - 1, ``none`` is Dr. GRPO), ``epsilon`` is added
    to it. A group of equal rewards, or of one, says nothing about which answer is better: all its
    advantages are exactly 0.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.size == 0 or np.all(values == values[0]):
        return np.zeros_like(values)
    centred: Float64Array = values - values.mean()
    if std == "none":
        return centred
    degrees_of_freedom = 1 if std == "sample" else 0
    scaled: Float64Array = centred / (values.std(ddof=degrees_of_freedom) + epsilon)
    return scaled
