"""B7: CPU seconds of the broker for a rollout, by the size of the fleet; no sockets, no disk."""

from __future__ import annotations

from deploy.bench.result import BenchResult, hardware_name, versions
from deploy.bench.study import run_study

MAX_RATIO = 1.5


def bench_fleet() -> BenchResult:
    """Measure; the ratio is 10,000 actors over 10, lower is better."""
    figures = run_study("broker.simulation", "fleet")
    ratio = figures.pop("ratio")
    return BenchResult(
        name="fleet",
        ratio=ratio,
        goal=f"<= {MAX_RATIO:g}x",
        passed=ratio <= MAX_RATIO,
        baseline="a fleet of 10 actors: leases, heartbeats, held requests, hand-over, weights",
        hardware=hardware_name(),
        details={**figures, "versions": versions("msgspec")},
    )
