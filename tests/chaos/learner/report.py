"""The report: a table like the summary of a Jepsen report, and the same as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common.files import write_atomically
from deploy.bench.result import hardware_name, versions
from tests.chaos.broker.report import percentile
from tests.chaos.learner.campaign import Outcome

NOT_COVERED = (
    "NCCL: ranks are gloo ranks on one CPU",
    "ranks on several machines, and the loss of one",
    "a crash of the operating system, which forgets what was not synced",
    "the broker's own deaths (chaos-broker)",
    "real actors and verifiers (tests/chaos/test_kill_each_process.py has them)",
)


def head() -> str:
    """The first line of the table."""
    return (
        f"{'campaign':10} {'ranks':>5} {'seed':>5} {'trials':>7} {'steps':>6} {'groups':>7} "
        f"{'checkpoints':>12} {'violations':>11} {'noticed p50/max':>17} {'stop p50/max':>15} "
        f"{'wall':>7}"
    )


def line(outcome: Outcome) -> str:
    """One campaign in one line."""
    return (
        f"{outcome.name:10} {outcome.world_size:5} {outcome.seed:5} {outcome.num_trials:7} "
        f"{outcome.num_steps:6} {outcome.num_groups:7} {outcome.num_checkpoints_checked:12} "
        f"{len(outcome.violations):11} {_spread(outcome.noticed_s):>17} "
        f"{_spread(outcome.stopped_s):>15} {outcome.wall_s:5.0f} s"
    )


def progress(outcome: Outcome) -> str:
    """How far a campaign is."""
    return (
        f"  {outcome.name}, {outcome.world_size} ranks: {outcome.num_trials} trials in "
        f"{outcome.wall_s:.0f} s, {len(outcome.violations)} violations"
    )


def write_report(path: Path, seed: int, outcomes: Sequence[Outcome]) -> None:
    """Write everything that was done and found."""
    noticed = [seconds for outcome in outcomes for seconds in outcome.noticed_s]
    stopped = [seconds for outcome in outcomes for seconds in outcome.stopped_s]
    report = {
        "name": "chaos-learner",
        "seed": seed,
        "hardware": hardware_name(),
        "versions": versions("torch", "safetensors"),
        "trials": sum(outcome.num_trials for outcome in outcomes),
        "faults": sum((outcome.faults for outcome in outcomes), Counter()),
        "steps": sum(outcome.num_steps for outcome in outcomes),
        "groups": sum(outcome.num_groups for outcome in outcomes),
        "checkpoints_checked": sum(outcome.num_checkpoints_checked for outcome in outcomes),
        "violations": [text for outcome in outcomes for text in outcome.violations],
        "noticed_s": _percentiles(noticed),
        "stopped_s": _percentiles(stopped),
        "not_covered": NOT_COVERED,
        "runs": [vars(outcome) for outcome in outcomes],
    }
    write_atomically(path, (json.dumps(report, indent=2) + "\n").encode())


def _spread(seconds: Sequence[float]) -> str:
    return f"{percentile(seconds, 50):.2f}/{max(seconds):.2f} s" if seconds else "-"


def _percentiles(seconds: Sequence[float]) -> dict[str, float | int | None]:
    return {
        "number": len(seconds),
        "p50": percentile(seconds, 50) if seconds else None,
        "p99": percentile(seconds, 99) if seconds else None,
        "max": max(seconds, default=None),
    }
