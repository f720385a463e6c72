"""From tokens to one number: a sum over all trained tokens, and the number it is divided by.

Both add up over any parts of a batch, so gradients can be accumulated as groups arrive and divided
once: no part has to know what will follow it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Aggregation = Literal["token", "sequence", "constant"]


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
    ``token``: all tokens (DAPO, arXiv 2503.14476, eq. 8). ``sequence``: all sequences, GRPO's mean
    of means (DeepSeekMath, arXiv 2402.03300, eq. 3). ``constant``: ``max_tokens`` for each sequence
    (Dr. GRPO, arXiv 2503.20783, section 3.2).
    """
    if aggregation == "token":
        return float(math.fsum(trained_lengths))
    if aggregation == "sequence":
        return float(len(trained_lengths))
    return float(max_tokens * len(trained_lengths))
