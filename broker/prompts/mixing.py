"""Which prompt set is drawn from next: weighted shares, exact to less than one prompt. Pure.

Each set ``j`` with share ``w_j`` is a periodic task on one processor whose slots are the draws: its
``x``-th prompt (from 1) may be drawn once ``n`` draws satisfy ``w_j (n + 1) > x - 1`` and is due by
draw ``ceil(x / w_j)``. The earliest due date among those that may be drawn goes first. As the
shares add up to 1, every due date is met (Baruah, Cohen, Plaxton and Varvel, "Proportionate
progress", Algorithmica 15, 1996; on one processor earliest-deadline-first is optimal), which says::

    | x_j(n) - w_j n | < 1    for every set j after every number of draws n

Drawing where the deficit ``w_j n - x_j`` is largest would be simpler, but with many sets its
deficits grow beyond 1. Arithmetic is in integers: a weight of 0.1 is one tenth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache

from broker.events import SetWeight


def next_set(mix: Sequence[SetWeight], num_drawn: Mapping[str, int]) -> str:
    """The set to draw from after ``num_drawn`` prompts of each set, all counted under ``mix``."""
    weights = _integer_weights(tuple(mix))
    total = sum(weights)
    draws = sum(num_drawn[item.name] for item in mix)
    due: list[tuple[int, int]] = []
    for place, (item, weight) in enumerate(zip(mix, weights, strict=True)):
        drawn = num_drawn[item.name]
        if drawn * total < weight * (draws + 1):
            due.append((-(-(drawn + 1) * total // weight), place))
    return mix[min(due)[1]].name


@lru_cache(maxsize=8)
def _integer_weights(mix: tuple[SetWeight, ...]) -> tuple[int, ...]:
    """The weights as integers in the same proportions, each float read as its decimal text."""
    exact = [Fraction(repr(item.weight)) for item in mix]
    scale = math.lcm(*(weight.denominator for weight in exact))
    return tuple(int(weight * scale) for weight in exact)
