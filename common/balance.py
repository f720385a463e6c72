"""Divide work over workers that wait for each other, so that the most loaded one has little more.

What a sequence costs is not its length: linear layers cost a token each, attention a token times
those before it, so a sequence of s tokens costs a s + b s^2. Only b / a matters here.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_CLOSE_ENOUGH = 1.005
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

    Longest processing time first (Graham, SIAM J. Appl. Math. 17, 1969: at most 4/3 of the best).
    Where that leaves a part too full, full and empty parts are paired to even each other out, all
    pairs at once, and what is left is moved or swapped one by one. The same costs give the same
    parts. Parts list their items by falling cost.
    """
    values = np.asarray(costs, dtype=np.float64)
    parts, peak = _longest_first(values, num_parts)
    enough = _CLOSE_ENOUGH * max(float(values.max(initial=0.0)), float(values.sum()) / num_parts)
    if peak <= enough or num_parts == 1:
        return parts
    owner = _even_out_pairs(parts, values, enough)
    _relieve_the_fullest(owner, values, num_parts, enough)
    by_cost = np.argsort(-values, kind="stable")
    by_owner = by_cost[np.argsort(owner[by_cost], kind="stable")]
    ends = np.bincount(owner, minlength=num_parts).cumsum()
    return [part.tolist() for part in np.split(by_owner, ends[:-1])]


def imbalance(costs: Sequence[float], parts: Sequence[Sequence[int]]) -> float:
    """Largest sum of a part over the mean; 1 is perfect. ``costs`` may not all be 0."""
    sums = [sum(costs[item] for item in part) for part in parts]
    return max(sums) * len(sums) / sum(sums)


def _longest_first(costs: npt.NDArray[np.float64], num_parts: int) -> tuple[list[list[int]], float]:
    """Each to the part with the least so far, of equal ones to the first; and the largest sum."""
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    loads = [(0.0, number) for number in range(num_parts)]
    order = np.argsort(-costs, kind="stable")
    for item, cost in zip(order.tolist(), costs[order].tolist(), strict=True):
        load, number = loads[0]
        parts[number].append(item)
        heapq.heapreplace(loads, (load + cost, number))
    return parts, max(loads)[0]


def _even_out_pairs(
    parts: Sequence[Sequence[int]], costs: npt.NDArray[np.float64], enough: float
) -> npt.NDArray[np.intp]:
    """The part of each item after the fullest part has evened out with the emptiest, the second
    fullest with the second emptiest, and so on, by the best move or swap of each pair.

    Repeated until no part holds more than ``enough`` or the fullest stays as it is.
    """
    nothing = len(costs)  # stands for what a move gives back
    items = np.full((len(parts), max(map(len, parts)) + 1), nothing, dtype=np.intp)
    for number, part in enumerate(parts):
        items[number, : len(part)] = part
    padded = np.append(costs, 0.0)
    for _ in range(_MAX_ROUNDS):
        loads = padded[items].sum(axis=1)
        if loads.max() <= enough or not _swap_in_pairs(items, padded, loads):
            break
    owner = np.empty(nothing + 1, dtype=np.intp)
    owner[items] = np.arange(len(parts))[:, None]
    return owner[:nothing]


def _swap_in_pairs(
    items: npt.NDArray[np.intp], padded: npt.NDArray[np.float64], loads: npt.NDArray[np.float64]
) -> bool:
    """One round of it, in place; False where the fullest part stays as it is."""
    order, half = loads.argsort(kind="stable"), len(loads) // 2
    low, high = order[:half], order[::-1][:half]
    target = (loads[high] - loads[low]) / 2
    shift = padded[items[high]][:, :, None] - padded[items[low]][:, None, :]
    missed = np.abs(shift - target[:, None, None]).reshape(half, -1)
    best = missed.argmin(axis=1)
    closer = missed[np.arange(half), best] < target * (1 - 1e-12)
    given, taken = np.divmod(best[closer], items.shape[1])
    low, high = low[closer], high[closer]
    items[high, given], items[low, taken] = items[low, taken], items[high, given]
    return bool(closer[0])


def _relieve_the_fullest(
    owner: npt.NDArray[np.intp], costs: npt.NDArray[np.float64], num_parts: int, enough: float
) -> None:
    """Relieve the fullest part until it holds at most ``enough``, or nothing helps."""
    loads = np.bincount(owner, costs, num_parts).astype(np.float64)
    for _ in range(_MAX_ROUNDS):
        fullest = int(loads.argmax())
        if loads[fullest] <= enough or not _relieve(fullest, owner, loads, costs):
            break


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
