"""Whether the bound ever broke, whether lag obeys Little's law, what the bound costs (B6)."""

from __future__ import annotations

from collections import Counter

from broker.simulation.lag_book import mean_lag
from broker.simulation.lengths import Lognormal, Pareto
from broker.simulation.little import leaked_lag, measured_lag, predicted_lag
from broker.simulation.run import Outcome, Simulation
from broker.simulation.setting import GROUPS_PER_STEP, Faults, Setting

HEAVY = Lognormal(1.2, 8.0)
_ETAS = (0, 1, 2, 4, 8)
_RHOS = (0.25, 0.5, 1.0, 2.0)


def staleness_study(quick: bool) -> dict[str, object]:
    """All tables; ``quick`` takes fewer seeds and steps."""
    num_steps = 16 if quick else 60
    cells = [_cell(rho, eta, num_steps) for rho in _RHOS for eta in _ETAS]
    ratios = [cell["over_littles_law"] for cell in cells if cell["eta"]]
    return {
        "ratio": max(ratios, key=lambda ratio: abs(ratio - 1)),
        "violations": _violations(24 if quick else 400),
        "cells": cells,
        "num_steps": num_steps,
    }


def _cell(rho: float, eta: int, num_steps: int) -> dict[str, float]:
    """Lag and utilisation under the hard bound and under count gating, sigma 1.2."""
    hard, count = (
        Simulation(
            Setting.balanced(
                rho=rho,
                max_policy_lag=eta,
                num_steps=num_steps,
                lengths=HEAVY,
                takes="whole groups",
                gate=gate,
            )
        ).run()
        for gate in ("deadline", "count")
    )
    measured, predicted = measured_lag(hard), predicted_lag(hard, GROUPS_PER_STEP)
    return {
        "rho": rho,
        "eta": eta,
        "max_lag": hard.lags.largest,
        "max_lag_count_gating": count.lags.largest,
        "mean_lag": measured,
        "littles_law": predicted,
        "over_littles_law": measured / predicted if eta else 1.0,
        "leak": leaked_lag(hard, GROUPS_PER_STEP),
        "token_mean_lag": mean_lag(hard.lags.tokens),
        "utilisation": hard.steady_utilisation(),
        "utilisation_count_gating": count.steady_utilisation(),
    }


def _violations(num_seeds: int) -> dict[str, object]:
    """Small runs with heavy tails and everything that fails, conservation checked at each event."""
    totals: Counter[str] = Counter()
    largest: dict[int, int] = {}
    for seed in range(num_seeds):
        setting = faulty_setting(seed)
        outcome = Simulation(setting).run()
        eta = setting.max_policy_lag
        largest[eta] = max(largest.get(eta, 0), outcome.lags.largest)
        totals.update(_totals(outcome))
        totals["runs"] += 1
        totals["violations"] += outcome.lags.largest > eta
        totals["evicted_without_a_fork"] += 0 if outcome.num_forks else outcome.counts.evicted
    return {
        **totals,
        "largest_lag_by_bound": {str(eta): lag for eta, lag in sorted(largest.items())},
        "mean_evicted_share": totals["evicted"] / max(totals["admitted"], 1),
    }


def faulty_setting(seed: int) -> Setting:
    """A small run in which actors and the learner die, publishes are late and verdicts get lost."""
    return Setting(
        num_actors=6,
        slots_per_actor=8,
        group_size=4,
        groups_per_step=8,
        num_steps=24,
        max_policy_lag=_ETAS[seed % 5],
        latency_s=(0.25, 0.5, 1.0, 2.0)[seed % 4],
        lengths=Pareto(1.5, 16.0) if seed % 3 == 2 else HEAVY,
        checkpoint_every=(1, 3, 5)[seed % 3],
        seed=seed,
        checked=True,
        faults=Faults(
            actor_deaths=(0.0, 0.02, 0.05)[seed % 3],
            learner_deaths=(0.03, 0.1)[seed % 2],
            fork_share=0.5 * (seed % 4 != 1),
            lost_verdicts=(0.01, 0.1)[seed % 2],
            late_publish_s=(0.0, 1.5, 4.0)[seed % 3],
        ),
    )


def _totals(outcome: Outcome) -> dict[str, int]:
    counts = outcome.counts
    return {
        "steps": len(outcome.steps),
        "admitted": counts.admitted,
        "trained": counts.trained,
        "evicted": counts.evicted,
        "dead_lettered": counts.dead_lettered,
        "actor_deaths": outcome.num_deaths,
        "forks": outcome.num_forks,
    }
