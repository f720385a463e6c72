"""How busy the real scheduler keeps the learner, against the best schedules found (B5)."""

from __future__ import annotations

from collections.abc import Iterable
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

RHOS = (0.25, 0.5, 1.0, 2.0)
ETAS = (0, 1, 2, 4, 8)
OTHER_LENGTHS: dict[str, Lengths] = {
    "lognormal 0.5, cap 4": Lognormal(0.5, 4.0),
    "lognormal 1.2, cap 8": Lognormal(1.2, 8.0),
    "pareto 1.5, cap 16": Pareto(1.5, 16.0),
}
FLEETS = ((64, 24), (1_000, 12), (10_000, 4))
"""Actors of 16 slots, and steps; a step takes a group from each actor."""


def scheduler_study(quick: bool) -> dict[str, object]:
    """All tables; ``quick`` takes fewer seeds, steps and moves."""
    seeds = (0,) if quick else (0, 1)
    num_steps = 12 if quick else 32
    num_tries = 4 if quick else 12
    cells = [_cell(rho, eta, seeds, num_steps, num_tries) for rho in RHOS for eta in ETAS]
    others = {name: _other(lengths, 10 if quick else 24) for name, lengths in OTHER_LENGTHS.items()}
    return {
        "ratio": min(cell["over_best_realisable"] for cell in cells),
        "over_batch_waiting": next(
            cell["over_batch_waiting"] for cell in cells if (cell["rho"], cell["eta"]) == (1.0, 2)
        ),
        "over_clairvoyant_slots": min(cell["over_clairvoyant_slots"] for cell in cells),
        "over_clairvoyant_order": min(cell["over_clairvoyant_order"] for cell in cells),
        "cells": cells,
        "other_lengths": others,
        "fleets": [_fleet(*fleet) for fleet in (FLEETS[:1] if quick else FLEETS)],
        "num_steps": num_steps,
        "seeds": list(seeds),
    }


def _cell(
    rho: float, eta: int, seeds: Iterable[int], num_steps: int, num_tries: int
) -> dict[str, float | int | str]:
    """One rho and eta: medians over seeds; the clairvoyant search on the first seed only."""
    settings = [
        Setting.balanced(rho=rho, max_policy_lag=eta, num_steps=num_steps, seed=seed)
        for seed in seeds
    ]
    real = [Simulation(setting).run() for setting in settings]
    waiting = [Simulation(replace(setting, learner="batch-waiting")).run() for setting in settings]
    problems = [Problem.of(setting) for setting in settings]
    best = [best_realisable(problem, num_tries) for problem in problems]
    slots = best_clairvoyant_slots(problems[0])
    order = best_clairvoyant_order(problems[0], 4 * num_tries)
    kappa = tail_ratio(settings[0].lengths, GROUP_SIZE)
    ends = [outcome.end_s for outcome in real]
    return {
        "rho": rho,
        "eta": eta,
        "utilisation": fmean(outcome.steady_utilisation() for outcome in real),
        "utilisation_with_start_and_end": fmean(outcome.utilisation for outcome in real),
        "law_streaming": law(eta, rho, kappa, 1),
        "law_batch_waiting": law(eta, rho, kappa, 2),
        "over_best_realisable": median(
            found.end_s / end_s for found, end_s in zip(best, ends, strict=True)
        ),
        "best_realisable": best[0].plan.name,
        "over_batch_waiting": median(
            slow.end_s / end_s for slow, end_s in zip(waiting, ends, strict=True)
        ),
        "over_clairvoyant_slots": slots.end_s / ends[0],
        "best_clairvoyant_slots": slots.plan.name,
        "over_clairvoyant_order": min(order.end_s, slots.end_s) / ends[0],
        "best_clairvoyant_order": order.plan.name,
        "max_lag": max(outcome.lags.largest for outcome in real),
    }


def _other(lengths: Lengths, num_steps: int) -> dict[str, object]:
    """Another distribution of lengths, over the same cells."""
    ratios, utilisations = [], {}
    for rho in RHOS:
        for eta in ETAS:
            setting = Setting.balanced(
                rho=rho, max_policy_lag=eta, num_steps=num_steps, lengths=lengths
            )
            real = Simulation(setting).run()
            ratios.append(best_realisable(Problem.of(setting), 0).end_s / real.end_s)
            utilisations[f"rho {rho:g} eta {eta}"] = real.steady_utilisation()
    return {
        "kappa": tail_ratio(lengths, GROUP_SIZE),
        "over_best_realisable": min(ratios),
        "utilisation": utilisations,
    }


def _fleet(num_actors: int, num_steps: int) -> dict[str, float | int]:
    """A fleet of ``num_actors`` at rho 1 and eta 4, a batch of one group from each of them."""
    setting = Setting(
        num_actors=num_actors,
        slots_per_actor=16,
        groups_per_step=num_actors,
        max_policy_lag=4,
        num_steps=num_steps,
    )
    real = Simulation(setting).run()
    model = evaluate(Problem.of(setting), Plan())
    return {
        "num_actors": num_actors,
        "num_slots": setting.num_slots,
        "rollouts_per_step": num_actors * setting.group_size,
        "num_steps": num_steps,
        "utilisation_with_start_and_end": real.utilisation,
        "over_one_pool_of_slots": model.end_s / real.end_s,
        "max_lag": real.lags.largest,
    }
