"""B6: the bound on policy lag was never exceeded, and mean lag obeys Little's law; virtual time."""

from __future__ import annotations

from statistics import fmean

from deploy.bench.result import BenchResult, hardware_name, versions
from deploy.bench.study import run_study, table

MAX_DEVIATION = 0.05


def bench_staleness() -> BenchResult:
    """Simulate; the ratio is mean lag over Little's law where it is furthest from 1."""
    figures = run_study("broker.simulation", "staleness")
    ratio, runs, cells = figures["ratio"], figures["violations"], figures["cells"]
    num_violations = runs["violations"] + sum(cell["max_lag"] > cell["eta"] for cell in cells)
    is_kept = num_violations == 0 and runs["evicted_without_a_fork"] == 0
    losses = [1 - cell["utilisation"] / cell["utilisation_count_gating"] for cell in cells]
    return BenchResult(
        name="staleness",
        ratio=ratio,
        goal=(
            "no lag above the bound, nothing stale without a fork, and within "
            f"{MAX_DEVIATION:.0%} of 1"
        ),
        passed=is_kept and abs(ratio - 1) <= MAX_DEVIATION,
        baseline="Little's law: groups in the system / groups a step - 1 + phase of the lease",
        hardware=hardware_name(),
        details={
            "violations": num_violations,
            "runs_with_failures": runs,
            "mean_lag": table(cells, "mean_lag"),
            "littles_law": table(cells, "littles_law"),
            "token_mean_lag": table(cells, "token_mean_lag"),
            "max_lag": table(cells, "max_lag"),
            "max_lag_count_gating": table(cells, "max_lag_count_gating"),
            "utilisation": table(cells, "utilisation"),
            "utilisation_count_gating": table(cells, "utilisation_count_gating"),
            "mean_utilisation_loss_from_the_bound": fmean(losses),
            "worst_utilisation_loss_from_the_bound": max(losses),
            "num_steps": figures["num_steps"],
            "cells": cells,
            "versions": versions("msgspec"),
        },
    )
