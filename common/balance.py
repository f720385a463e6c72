"""Divide work over workers that wait for each other, so that the most loaded one has little more.

What a sequence costs is not its length: linear layers cost a token each, attention a token times
those before it, so a sequence of s tokens costs a s + b s^2. Only b / a matters here.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_CLOSE_ENOUGH = 1.002
"""Most a rank's cost may be over the best that can be hoped for; then nothing more is tried."""
_MAX_ROUNDS = 200


def sequence_cost(length: int, attention_ratio: float) -> float:
    """s + (b / a) s^2 of a sequence of s = ``length`` tokens, in units of one token's linear work.

    ``attention_ratio`` is b / a in 1 / token. A forward of a decoder with P parameters, L layers
    and attention width d does 2 P + 2 L d s operations for each token (causal attention looks at
    half of s on average, and has two products), so b / a = L d / P.
    """
    return length + attention_ratio * length * length


def split_evenly(costs: Sequence[float], num_parts: int) -> list[list[int]]:
    """Positions in ``costs`` divided into ``num_parts``, the largest sum as small as can be had.

    Longest processing time first (Graham, SIAM J. Appl. Math. 17, 1969: at most 4/3 of the best),
    then moves and swaps between the fullest part and the others while they make it emptier. The
    same costs give the same parts. Parts list their items by falling cost.
    """
    parts = _longest_first(costs, num_parts)
    if num_parts > 1 and len(costs) > num_parts:
        _improve(parts, np.asarray(costs, dtype=np.float64), num_parts)
    return [sorted(part, key=lambda item: (-costs[item], item)) for part in parts]


def imbalance(costs: Sequence[float], parts: Sequence[Sequence[int]]) -> float:
    """Largest sum of a part over the mean; 1 is perfect. ``costs`` may not all be 0."""
    sums = [sum(costs[item] for item in part) for part in parts]
    return max(sums) * len(sums) / sum(sums)


def _longest_first(costs: Sequence[float], num_parts: int) -> list[list[int]]:
    """Each to the part with the least so far; of equal ones to the first."""
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    loads = [(0.0, number) for number in range(num_parts)]
    for item in sorted(range(len(costs)), key=lambda item: (-costs[item], item)):
        load, number = loads[0]
        parts[number].append(item)
        heapq.heapreplace(loads, (load + costs[item], number))
    return parts


def _improve(parts: list[list[int]], costs: npt.NDArray[np.float64], num_parts: int) -> None:
    """Relieve the fullest part until it is as full as the best possible, or nothing helps."""
    owner = np.empty(len(costs), dtype=np.intp)
    for number, part in enumerate(parts):
        owner[part] = number
    loads = np.bincount(owner, costs, num_parts).astype(np.float64)
    enough = _CLOSE_ENOUGH * max(float(costs.max()), float(loads.mean()))
    for _ in range(_MAX_ROUNDS):
        fullest = int(loads.argmax())
        if loads[fullest] <= enough or not _relieve(fullest, owner, loads, costs):
            break
    for number in range(num_parts):
        parts[number] = np.flatnonzero(owner == number).tolist()


def _relieve(
    fullest: int,
    owner: npt.NDArray[np.intp],
    loads: npt.NDArray[np.float64],
    costs: npt.NDArray[np.float64],
) -> bool:
    """The one move or swap that leaves the smaller of two peaks; False where none helps."""
    own = np.flatnonzero(owner == fullest)
    others = np.flatnonzero(owner != fullest)
    receivers = np.concatenate((owner[others], np.delete(np.arange(len(loads)), fullest)))
    returned = np.concatenate((costs[others], np.zeros(len(loads) - 1)))  # a move returns nothing
    shift = costs[own][:, None] - returned
    peak = np.maximum(loads[fullest] - shift, loads[receivers] + shift)
    given, taken = divmod(int(peak.argmin()), len(receivers))
    if peak[given, taken] >= loads[fullest] * (1 - 1e-12):
        return False
    receiver = receivers[taken]
    owner[own[given]] = receiver
    if taken < len(others):
        owner[others[taken]] = fullest
    loads[fullest] -= shift[given, taken]
    loads[receiver] += shift[given, taken]
    return True
