"""How full and how even the learner's plans are: ``python -m learner.studies.packing_study``.

Prints one JSON object. 512 answers of lognormal length go to 64 ranks, once for each spread of the
lengths and each seed, through the planner that a training batch goes through. The baseline divides
the same costs by the largest differencing method of Karmarkar and Karp (1982), as verl does; it
does no packing. Time is processor time of one thread, the planners taking turns.
"""

from __future__ import annotations

import heapq
import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence

import torch

from common.balance import imbalance, sequence_cost, split_evenly
from common.types import RolloutId
from learner.batches.layout import ChunkLayout, PlannedRollout, plan_chunk

NUM_ROLLOUTS = 512
GROUP_SIZE = 8
NUM_RANKS = 64
PROMPT_TOKENS = 64
MAX_TOKENS = 32_768
MEDIAN_TOKENS = 2981
"""exp(8)."""
SIGMAS = (0.5, 0.8, 1.2)
SEEDS = range(5)
MICROBATCH_TOKENS = 16_384
ATTENTION_RATIO = 28 * 1024 / 6e8
"""Layers times width over parameters of a model of 0.6 billion: see ``common.balance``."""
HIDDEN_RATIOS = {"skipped": 0.0, "computed": 2 * ATTENTION_RATIO}
"""What attention does with hidden places, see ``common.packing``."""
REPEATS = 3

_State = list[tuple[float, list[int]]]
"""Parts of a partition as (sum, items)."""


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    cells = [cell(sigma, seed) for sigma in SIGMAS for seed in SEEDS]
    figures = {
        "cells": cells,
        "num_rollouts": NUM_ROLLOUTS,
        "num_ranks": NUM_RANKS,
        "median_tokens": MEDIAN_TOKENS,
        "max_tokens": MAX_TOKENS,
        "microbatch_tokens": MICROBATCH_TOKENS,
        "attention_ratio": ATTENTION_RATIO,
    }
    json.dump(figures, sys.stdout)


def cell(sigma: float, seed: int) -> dict[str, object]:
    """All figures of one draw of lengths."""
    rollouts = make_rollouts(sigma, seed)
    costs = [sequence_cost(rollout.length, ATTENTION_RATIO) for rollout in rollouts]
    layouts = {name: plan(rollouts, ratio) for name, ratio in HIDDEN_RATIOS.items()}
    work: dict[str, Callable[[], object]] = {
        "plan": lambda: plan(rollouts, HIDDEN_RATIOS["skipped"]),
        "split": lambda: split_evenly(costs, NUM_RANKS),
        "karmarkar_karp": lambda: karmarkar_karp(costs, NUM_RANKS),
        "karmarkar_karp_equal_counts": lambda: equal_karmarkar_karp(costs, NUM_RANKS),
    }
    bound = max(1.0, max(costs) * NUM_RANKS / sum(costs))
    return {
        "sigma": sigma,
        "seed": seed,
        "bound": bound,
        "packing_efficiency": {
            name: packing_efficiency(layout, rollouts) for name, layout in layouts.items()
        },
        "imbalance": {
            "ours": rank_imbalance(layouts["skipped"], rollouts),
            "karmarkar_karp": imbalance(costs, karmarkar_karp(costs, NUM_RANKS)),
            "karmarkar_karp_equal_counts": imbalance(costs, equal_karmarkar_karp(costs, NUM_RANKS)),
        },
        "seconds": _seconds(work),
    }


def make_rollouts(sigma: float, seed: int) -> list[PlannedRollout]:
    """Groups of answers whose completions are lognormal, cut off at ``MAX_TOKENS``."""
    source = random.Random(seed)
    centre = math.log(MEDIAN_TOKENS)
    drawn = (int(math.exp(source.gauss(centre, sigma))) for _ in range(NUM_ROLLOUTS))
    return [
        PlannedRollout(
            rollout_id=RolloutId(
                group_id=number // GROUP_SIZE, index=number % GROUP_SIZE, attempt=0
            ),
            num_prompt_tokens=PROMPT_TOKENS,
            num_completion_tokens=min(MAX_TOKENS, 1 + length),
            advantage=0.0,
            lag=0,
        )
        for number, length in enumerate(drawn)
    ]


def plan(rollouts: Sequence[PlannedRollout], hidden_attention_ratio: float) -> ChunkLayout:
    """Ranks, microbatches and rows of all of them, as for a training batch."""
    return plan_chunk(
        range(NUM_ROLLOUTS // GROUP_SIZE),
        rollouts,
        num_ranks=NUM_RANKS,
        row_tokens=0,
        microbatch_tokens=MICROBATCH_TOKENS,
        attention_ratio=ATTENTION_RATIO,
        hidden_attention_ratio=hidden_attention_ratio,
    )


def packing_efficiency(layout: ChunkLayout, rollouts: Sequence[PlannedRollout]) -> float:
    """Tokens over places, padding included."""
    places = sum(
        microbatch.row_length * len(microbatch.rows) for rank in layout.ranks for microbatch in rank
    )
    return sum(rollout.length for rollout in rollouts) / places


def rank_imbalance(layout: ChunkLayout, rollouts: Sequence[PlannedRollout]) -> float:
    """Cost of the most loaded rank over the mean."""
    lengths = {rollout.rollout_id: rollout.length for rollout in rollouts}
    loads = [
        sum(
            sequence_cost(lengths[item], ATTENTION_RATIO)
            for microbatch in rank
            for row in microbatch.rows
            for item in row
        )
        for rank in layout.ranks
    ]
    return max(loads) * len(loads) / sum(loads)


def karmarkar_karp(costs: Sequence[float], num_parts: int) -> list[list[int]]:
    """The largest differencing method for any number of parts.

    Every item begins as a partition of its own, the other parts empty. The two partitions with the
    widest spread are joined, the fullest part of one with the emptiest of the other, until one is
    left.
    """
    states: list[_State] = [
        [(0.0, [])] * (num_parts - 1) + [(cost, [item])] for item, cost in enumerate(costs)
    ]
    return _differenced(states)


def equal_karmarkar_karp(costs: Sequence[float], num_parts: int) -> list[list[int]]:
    """The same with equally many items a part: it begins with one item in every part."""
    ranked = sorted(range(len(costs)), key=costs.__getitem__)
    states = [
        [(costs[item], [item]) for item in ranked[start : start + num_parts]]
        for start in range(0, len(ranked), num_parts)
    ]
    return _differenced(states)


def _differenced(states: Sequence[_State]) -> list[list[int]]:
    """Join ``states``, whose parts stand by rising sum, down to one."""
    waiting = [(state[0][0] - state[-1][0], number, state) for number, state in enumerate(states)]
    heapq.heapify(waiting)
    for number in range(len(states), 2 * len(states) - 1):
        _, _, widest = heapq.heappop(waiting)
        _, _, second = heapq.heappop(waiting)
        joined = [
            (low + high, [*few, *many])
            for (low, few), (high, many) in zip(widest, reversed(second), strict=True)
        ]
        joined.sort(key=lambda part: part[0])
        heapq.heappush(waiting, (joined[0][0] - joined[-1][0], number, joined))
    return [items for _, items in waiting[0][2]]


def _seconds(work: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Processor seconds of each, in turns, after a round that warms up."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(REPEATS + 1):
        for name, call in work.items():
            started_s = time.process_time()
            call()
            if turn:
                found[name].append(time.process_time() - started_s)
    return found


if __name__ == "__main__":
    main()
