"""B16: how full packed rows and how even the ranks' shares are, and what planning costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from deploy.bench.result import BenchResult, hardware_name, spread, versions
from deploy.bench.study import load_average, run_study

MIN_EFFICIENCY = 0.98
MAX_EXCESS = 1.02
"""Most loaded rank over the mean, over what the longest sequence alone forces."""
MAX_PLAN_S = 0.010
MIN_SPEED_UP = 10.0


def bench_packing() -> BenchResult:
    """Measure; the ratio is the time of Karmarkar-Karp's division over ours, lower quartile."""
    figures = run_study("learner.studies.packing_study")
    cells: Sequence[Mapping[str, Any]] = figures.pop("cells")
    efficiency = min(cell["packing_efficiency"]["skipped"] for cell in cells)
    excess = max(cell["imbalance"]["ours"] / cell["bound"] for cell in cells)
    plan_s = max(_median_s(cell, "plan") for cell in cells)
    speed_ups = [_median_s(cell, "karmarkar_karp") / _median_s(cell, "split") for cell in cells]
    ratio = statistics.quantiles(speed_ups, n=4)[0]
    return BenchResult(
        name="packing",
        ratio=ratio,
        goal=(
            f"tokens / places >= {MIN_EFFICIENCY:g}, max / mean rank cost <= {MAX_EXCESS:g} x "
            f"max(1, longest / mean), whole plan < {1e3 * MAX_PLAN_S:g} ms, all in the worst cell; "
            f"division >= {MIN_SPEED_UP:g} x faster in the lower quartile of the cells"
        ),
        passed=(
            efficiency >= MIN_EFFICIENCY
            and excess <= MAX_EXCESS
            and plan_s < MAX_PLAN_S
            and ratio >= MIN_SPEED_UP
        ),
        baseline="largest differencing method (Karmarkar-Karp), parts of any size, in Python",
        hardware=hardware_name(),
        details={
            "worst_packing_efficiency": efficiency,
            "worst_packing_efficiency_where_hidden_places_are_computed": min(
                cell["packing_efficiency"]["computed"] for cell in cells
            ),
            "worst_rank_cost_over_bound": {
                name: max(cell["imbalance"][name] / cell["bound"] for cell in cells)
                for name in cells[0]["imbalance"]
            },
            "slowest_plan_s": plan_s,
            "speed_ups": sorted(speed_ups),
            "processor_time": {
                name: spread([second for cell in cells for second in cell["seconds"][name]])
                for name in cells[0]["seconds"]
            },
            "by_sigma": _by_sigma(cells),
            **figures,
            "equal_counts": "as verl divides over ranks: as many sequences on each; for comparison",
            "load_average": load_average(),
            "versions": versions("numpy"),
        },
    )


def _median_s(cell: Mapping[str, Any], name: str) -> float:
    return float(statistics.median(cell["seconds"][name]))


def _by_sigma(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over the seeds, by the spread of the lengths."""
    found: dict[str, dict[str, float]] = {}
    for sigma in sorted({cell["sigma"] for cell in cells}):
        own = [cell for cell in cells if cell["sigma"] == sigma]
        found[f"sigma {sigma:g}"] = {
            "bound": statistics.mean(cell["bound"] for cell in own),
            **{
                f"imbalance_{name}": statistics.mean(cell["imbalance"][name] for cell in own)
                for name in own[0]["imbalance"]
            },
            **{
                f"{name}_ms": 1e3 * statistics.mean(_median_s(cell, name) for cell in own)
                for name in own[0]["seconds"]
            },
        }
    return found
