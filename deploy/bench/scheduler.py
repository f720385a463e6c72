"""B5: utilisation of the learner under the real scheduler, in virtual time.

The baseline is the best schedule found under the same hard bound that knows no length in advance;
schedules that know all of them, and the law ``u = min(1, (eta+1)/(w+rho*kappa))``, stand beside it.
"""

from __future__ import annotations

from deploy.bench.result import BenchResult, hardware_name, versions
from deploy.bench.study import run_study, table

MIN_OVER_BEST = 0.97
MIN_OVER_BATCH_WAITING = 1.15


def bench_scheduler() -> BenchResult:
    """Simulate; the ratio is the worst over all rho and eta, higher is better."""
    figures = run_study("broker.simulation", "scheduler")
    ratio, over_waiting = figures["ratio"], figures["over_batch_waiting"]
    cells = figures.pop("cells")
    return BenchResult(
        name="scheduler",
        ratio=ratio,
        goal=(
            f">= {MIN_OVER_BEST:g} of the best schedule at every rho and eta, and "
            f">= {MIN_OVER_BATCH_WAITING:g}x a batch-waiting learner at rho 1, eta 2"
        ),
        passed=ratio >= MIN_OVER_BEST and over_waiting >= MIN_OVER_BATCH_WAITING,
        baseline="the best schedule found under the same bound that knows no length in advance",
        hardware=hardware_name(),
        details={
            "over_batch_waiting_at_rho_1_eta_2": over_waiting,
            "utilisation": table(cells, "utilisation"),
            "law_streaming": table(cells, "law_streaming"),
            "law_batch_waiting": table(cells, "law_batch_waiting"),
            "over_best_realisable": table(cells, "over_best_realisable"),
            "over_clairvoyant_slots": table(cells, "over_clairvoyant_slots"),
            "over_clairvoyant_order": table(cells, "over_clairvoyant_order"),
            "worst_over_clairvoyant_slots": figures["over_clairvoyant_slots"],
            "worst_over_clairvoyant_order": figures["over_clairvoyant_order"],
            "num_actors": figures["num_actors"],
            "slots_per_actor": figures["slots_per_actor"],
            "seeds": figures["seeds"],
            "num_steps": figures["num_steps"],
            "other_lengths": figures["other_lengths"],
            "fleets_of_small_actors": figures["fleets"],
            "cells": cells,
            "versions": versions("msgspec"),
        },
    )
