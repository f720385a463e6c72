"""``make chaos-broker``: break everything around a broker and print what it broke (nothing).

Usage: python -m tests.chaos.broker [--only NAME ...] [--seed 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import structlog

from tests.chaos.broker.plan import CAMPAIGNS, Plan
from tests.chaos.broker.report import head, line, write_report


def main() -> int:
    """Run the campaigns; the exit code is 1 when a promise was broken."""
    options = _options()
    quiet = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=quiet)
    plan = Plan(seed=options.seed, kills=options.kills, points=options.points, scale=options.scale)
    outcomes = []
    print(head(), flush=True)
    for name in options.only or CAMPAIGNS:
        for outcome in CAMPAIGNS[name](plan):
            outcomes.append(outcome)
            print(line(outcome), flush=True)
            if options.json:  # as far as it has come: the whole takes most of an hour
                write_report(options.json, options.seed, outcomes)
    broken = [f"{item.name}: {text}" for item in outcomes for text in item.violations]
    for violation in broken[:50]:
        print(f"  {violation}")
    total = sum(outcome.num_trials for outcome in outcomes)
    print(f"{total} trials, seed {options.seed}: {len(broken)} violations")
    return 1 if broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos-broker", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(CAMPAIGNS), metavar="NAME")
    parser.add_argument("--kills", type=int, default=1000, help="SIGKILLs at random moments")
    parser.add_argument("--points", type=int, default=120, help="numbered kill points, 3 ways each")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the other campaigns")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None, help="write the report here")
    options = parser.parse_args()
    if options.only is None and (options.kills, options.points) != (1000, 120):
        options.only = ["random", "numbered"]
    return options


if __name__ == "__main__":
    sys.exit(main())
