"""Run a campaign and print what it found; the exit code is 1 if anything is wrong."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time

from tests.chaos.sandbox.campaign import run_campaign


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.sandbox")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--boxes", type=int, default=2)
    options = parser.parse_args()
    started_s = time.monotonic()
    findings = asyncio.run(run_campaign(options.jobs, options.seed, options.boxes))
    summary = findings.summary() | {"wall_s": round(time.monotonic() - started_s, 1)}
    print(json.dumps(summary, indent=2))
    bad = findings.wrong_verdicts or findings.left_behind or findings.num_restarts
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
