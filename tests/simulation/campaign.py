"""Many simulated runs from one seed, and what to print about them."""

from __future__ import annotations

import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deploy.bench.result import hardware_name
from tests.simulation.scenario import Scenario
from tests.simulation.world import Outcome, simulate


@dataclass
class Campaign:
    """Sums over runs; :attr:`failed` is the first run that broke a promise."""

    num_runs: int = 0
    num_steps: int = 0
    virtual_s: float = 0.0
    wall_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    tally: Counter[str] = field(default_factory=Counter)
    configurations: Counter[str] = field(default_factory=Counter)
    """Runs under each value of each key that varies."""
    trace_hash: int = 0
    """Of all runs: equal hashes mean that every step of every run was the same."""
    failed: tuple[str, Outcome] | None = None

    def add(self, seed: str, outcome: Outcome) -> None:
        """Count one run in."""
        self.num_runs += 1
        self.configurations.update(Scenario.draw(seed).configuration())
        self.trace_hash = zlib.crc32(outcome.trace_hash.to_bytes(4, "big"), self.trace_hash)
        self.num_steps += outcome.num_steps
        self.virtual_s += outcome.virtual_s
        self.faults.update(outcome.faults)
        self.tally.update(outcome.tally)
        if outcome.violation is not None:
            self.failed = (seed, outcome)


def run_campaign(
    seeds: Iterator[str], min_steps: int, report: Callable[[Campaign], None] = lambda _: None
) -> Campaign:
    """Run worlds until they have taken ``min_steps`` together, or one breaks a promise."""
    campaign = Campaign()
    started_s = time.perf_counter()
    for seed in seeds:
        campaign.add(seed, simulate(seed))
        campaign.wall_s = time.perf_counter() - started_s
        report(campaign)
        if campaign.failed or campaign.num_steps >= min_steps:
            break
    return campaign


def write_report(path: Path, seed: int, campaign: Campaign) -> None:
    """Write what was simulated and found; a campaign of the same seed replaces the one before."""
    report = json.loads(path.read_text("utf-8")) if path.exists() else {}
    failed = campaign.failed
    broken = [] if failed is None else [f"seed {failed[0]} breaks {failed[1].violation}"]
    campaigns = report.get("campaigns", {})
    campaigns[str(seed)] = {
        "runs": campaign.num_runs,
        "steps": campaign.num_steps,
        "simulated_hours": round(campaign.virtual_s / 3600, 1),
        "wall_s": round(campaign.wall_s, 1),
        "trace_hash": f"{campaign.trace_hash:08x}",
        "violations": broken,
        "configurations": dict(sorted(campaign.configurations.items())),
        "faults": dict(sorted(campaign.faults.items())),
        "told": dict(sorted(campaign.tally.items())),
    }
    report = {
        "name": "simulation",
        "hardware": hardware_name(),
        "steps": sum(item["steps"] for item in campaigns.values()),
        "violations": [text for item in campaigns.values() for text in item["violations"]],
        "campaigns": campaigns,
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def shrink(seed: str) -> tuple[Outcome, tuple[str, ...]]:
    """The fewest kinds of faults with which ``seed`` still breaks a promise, and what happens then.

    Leaves out one kind after another for as long as something breaks; the trace gets shorter with
    each kind that is gone.
    """
    outcome = simulate(seed)
    without: list[str] = []
    for kind in Scenario.draw(seed).enabled:
        tried = simulate(seed, [*without, kind])
        if tried.violation is not None:
            without.append(kind)
            outcome = tried
    needed = tuple(kind for kind in Scenario.draw(seed).enabled if kind not in without)
    return outcome, needed
