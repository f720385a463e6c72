"""Run a campaign and print what it found; the exit code is 1 if anything is wrong."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

from deploy.bench.result import hardware_name, versions
from tests.chaos.sandbox.campaign import HOSTILE_RATIO, run_campaign


def main() -> None:
    """Read the command line, run, print and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.sandbox")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--boxes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the report here as well")
    options = parser.parse_args()
    started_s = time.monotonic()
    findings = asyncio.run(run_campaign(options.jobs, options.seed, options.boxes))
    report = {
        "name": "chaos-sandbox",
        "seed": options.seed,
        "hardware": hardware_name(),
        "versions": versions(),
        "boxes": options.boxes,
        "hostile_ratio": HOSTILE_RATIO,
        **findings.summary(),
        "wall_s": round(time.monotonic() - started_s, 1),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")
    bad = findings.wrong_verdicts or findings.left_behind or findings.num_restarts
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
