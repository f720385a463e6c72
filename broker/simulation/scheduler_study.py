"""How busy the real scheduler keeps the learner, against the best schedules found (B5).

Fleet and batch are in balance: the actors sample exactly as fast as the learner trains, which is
where scheduling matters most. Every schedule that is compared trains the very same prompts with the
very same lengths, so a cell needs no more than a few thousand answers a batch and two seeds.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, median

from broker.simulation.lengths import Lengths, Lognormal, Pareto, tail_ratio
from broker.simulation.run import Simulation
from broker.simulation.schedule_model import Plan, Problem
from broker.simulation.schedule_search import (
    best_clairvoyant_order,
    best_clairvoyant_slots,
    best_realisable,
    evaluate,
)
from broker.simulation.setting import GROUP_SIZE, Setting, law

NUM_STEPS = {0.25: 3, 0.5: 4, 1.0: 8, 2.0: 16}
"""Batches by rho: a fleet that answers fast for its learner fills larger batches, so fewer do."""
ETAS = (0, 1, 2, 4, 8)
NUM_ACTORS = 64
SLOTS_PER_ACTOR = 64
NUM_RANDOM = 1
"""Random schedules for each cell, beside the plain ones."""
WAITING_CELL = (1.0, 2)
"""rho and eta at which a learner that waits for whole batches is run too."""
OTHER_LENGTHS: dict[str, Lengths] = {
    "lognormal 0.5, cap 4": Lognormal(0.5, 4.0),
    "lognormal 1.2, cap 8": Lognormal(1.2, 8.0),
    "pareto 1.5, cap 16": Pareto(1.5, 16.0),
}
OTHER_ETAS = (0, 2, 8)
FLEETS = (
    (64, 1.0, 4, 16),
    (64, 2.0, 4, 16),
    (1_000, 1.0, 2, 6),
    (1_000, 2.0, 2, 8),
    (10_000, 1.0, 1, 2),
)
"""Actors, rho, eta and steps of the fleets whose actors have only slots enough for one group."""


def scheduler_study(quick: bool) -> dict[str, object]:
    """All tables; ``quick`` takes a smaller fleet, one seed and fewer schedules."""
    gc.freeze()
    gc.set_threshold(50_000, 2, 1_000_000)  # the groups of a large batch are no garbage
    seeds = (0,) if quick else (0, 1)
    num_actors = 4 if quick else NUM_ACTORS
    kappa = tail_ratio(Lognormal(), GROUP_SIZE)
    cells = [
        _cell([_fleet_setting(num_actors, rho, eta, seed) for seed in seeds], kappa)
        for rho in NUM_STEPS
        for eta in ETAS
    ]
    waiting = next(cell for cell in cells if "over_batch_waiting" in cell)
    others = {} if quick else OTHER_LENGTHS
    return {
        "ratio": min(cell["over_best_realisable"] for cell in cells),
        "over_batch_waiting": waiting["over_batch_waiting"],
        "over_clairvoyant_slots": min(cell["over_clairvoyant_slots"] for cell in cells),
        "over_clairvoyant_order": min(cell["over_clairvoyant_order"] for cell in cells),
        "cells": cells,
        "other_lengths": {name: _other(lengths, 10) for name, lengths in others.items()},
        "fleets": [_small_actors(*fleet) for fleet in (FLEETS[:2] if quick else FLEETS)],
        "num_actors": num_actors,
        "slots_per_actor": SLOTS_PER_ACTOR,
        "num_steps": {f"rho {rho:g}": steps for rho, steps in NUM_STEPS.items()},
        "seeds": list(seeds),
    }


def _fleet_setting(
    num_actors: int,
    rho: float,
    eta: int,
    seed: int = 0,
    *,
    slots_per_actor: int = SLOTS_PER_ACTOR,
    num_steps: int | None = None,
) -> Setting:
    """A fleet and the batch that is in balance with it: as many answers as slots, over rho."""
    return Setting(
        num_actors=num_actors,
        slots_per_actor=slots_per_actor,
        latency_s=rho,
        groups_per_step=round(num_actors * slots_per_actor / (GROUP_SIZE * rho)),
        max_policy_lag=eta,
        num_steps=NUM_STEPS[rho] if num_steps is None else num_steps,
        seed=seed,
    )


def _cell(settings: Sequence[Setting], kappa: float) -> dict[str, float]:
    """One rho and eta: medians over seeds; the clairvoyant searches on the first seed only."""
    first = settings[0]
    rho, eta = first.latency_s, first.max_policy_lag
    real = [Simulation(setting).run() for setting in settings]
    problems = [Problem.of(setting) for setting in settings]
    best = [best_realisable(problem, NUM_RANDOM).end_s for problem in problems]
    over_best = [found / outcome.end_s for found, outcome in zip(best, real, strict=True)]
    slots = min(best[0], best_clairvoyant_slots(problems[0]).end_s)
    order = min(slots, best_clairvoyant_order(problems[0]).end_s)
    cell = {
        "rho": rho,
        "eta": eta,
        "utilisation": fmean(outcome.steady_utilisation() for outcome in real),
        "utilisation_with_start_and_end": fmean(outcome.utilisation for outcome in real),
        "law_streaming": law(eta, rho, kappa, 1),
        "law_batch_waiting": law(eta, rho, kappa, 2),
        "over_best_realisable": median(over_best),
        "worst_seed_over_best_realisable": min(over_best),
        "over_clairvoyant_slots": slots / real[0].end_s,
        "over_clairvoyant_order": order / real[0].end_s,
        "max_lag": max(outcome.lags.largest for outcome in real),
        "groups_per_step": first.groups_per_step,
    }
    if (rho, eta) == WAITING_CELL:
        slow = [Simulation(replace(setting, learner="batch-waiting")).run() for setting in settings]
        cell["over_batch_waiting"] = median(
            one.end_s / other.end_s for one, other in zip(slow, real, strict=True)
        )
    return cell


def _other(lengths: Lengths, num_steps: int) -> dict[str, object]:
    """Another distribution of lengths, in batches of 32 groups and a few large actors."""
    ratios, utilisations = {}, {}
    for rho in NUM_STEPS:
        for eta in OTHER_ETAS:
            setting = Setting.balanced(
                rho=rho, max_policy_lag=eta, num_steps=num_steps, lengths=lengths
            )
            real = Simulation(setting).run()
            name = f"rho {rho:g} eta {eta}"
            ratios[name] = best_realisable(Problem.of(setting), 0).end_s / real.end_s
            utilisations[name] = real.steady_utilisation()
    return {
        "kappa": tail_ratio(lengths, GROUP_SIZE),
        "over_best_realisable": ratios,
        "utilisation": utilisations,
    }


def _small_actors(num_actors: int, rho: float, eta: int, num_steps: int) -> dict[str, float]:
    """A fleet whose actors hold one group each, against one pool of as many slots.

    The pool may start the answers of a group in any slots that are free; an actor keeps the groups
    that it has leased, so no schedule of such a fleet reaches it.
    """
    setting = _fleet_setting(num_actors, rho, eta, slots_per_actor=GROUP_SIZE, num_steps=num_steps)
    real = Simulation(setting).run()
    return {
        "num_actors": num_actors,
        "slots_per_actor": GROUP_SIZE,
        "rho": rho,
        "eta": eta,
        "rollouts_per_step": setting.groups_per_step * GROUP_SIZE,
        "num_steps": num_steps,
        "utilisation_with_start_and_end": real.utilisation,
        "over_one_pool_of_slots": evaluate(Problem.of(setting), Plan()).end_s / real.end_s,
        "max_lag": real.lags.largest,
    }
