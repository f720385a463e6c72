"""``python -m tests.simulation --steps 1000000 --seed 7``: simulate until a promise breaks."""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from pathlib import Path

import structlog

from tests.simulation.campaign import Campaign, run_campaign, shrink, write_report


def main() -> int:
    """Run, report, and return 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000, help="steps in all, at least")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first run's seed")
    parser.add_argument("--only", metavar="SEED", help='one run by its own seed, such as "7.12"')
    parser.add_argument("--report", type=Path, help="JSON file that the campaign is added to")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if options.only:
        seeds = iter([options.only])
    else:
        seeds = (f"{options.seed}.{number}" for number in itertools.count())
    campaign = run_campaign(seeds, options.steps, _progress)
    _report(campaign, options.seed)
    if options.report is not None:
        write_report(options.report, options.seed, campaign)
    return _explain(campaign)


def _progress(campaign: Campaign) -> None:
    if sys.stderr.isatty():
        print(f"\r{campaign.num_runs} runs, {campaign.num_steps} steps", end="", file=sys.stderr)


def _report(campaign: Campaign, seed: int) -> None:
    rate = campaign.num_steps / max(campaign.wall_s, 1e-9)
    print(
        f"seed {seed}: {campaign.num_runs} runs, {campaign.num_steps} steps, "
        f"{campaign.virtual_s / 3600:.1f} simulated hours in {campaign.wall_s:.0f} s "
        f"({rate:.0f} steps/s)"
    )
    for title, counts in (
        ("runs by configuration", campaign.configurations),
        ("faults", campaign.faults),
        ("what clients were told", campaign.tally),
    ):
        print(f"{title} ({sum(counts.values())}):")
        for name, number in sorted(counts.items()):
            print(f"  {name:36} {number}")
    print(f"violations: {int(campaign.failed is not None)}; trace {campaign.trace_hash:08x}")


def _explain(campaign: Campaign) -> int:
    """Say how the broken promise came about, in as few faults as will do."""
    if campaign.failed is None:
        return 0
    seed, outcome = campaign.failed
    print(f"\nseed {seed} breaks {outcome.violation}")
    print(f"again: python -m tests.simulation --only {seed}")
    shrunk, needed = shrink(seed)
    print(f"\nwith only {', '.join(needed) or 'no faults'}: {shrunk.violation}")
    print("\n".join(shrunk.tail))
    return 1


if __name__ == "__main__":
    sys.exit(main())
