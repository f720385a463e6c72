"""The report: a table like the summary of a Jepsen report, and the same as JSON."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from deploy.bench.result import hardware_name, versions
from tests.chaos.broker.campaign import Outcome

NOT_COVERED = (
    "clients that hold a key and lie (Byzantine)",
    "a second broker: there is one, and while it is down clients wait",
    "loss of the disk itself",
    "NCCL and real engines: clients here sample and train nothing",
    "a crash of the operating system (tests/simulation does it on a fake disk)",
)


def head() -> str:
    """The first line of the table."""
    return (
        f"{'campaign':12} {'seed':>6} {'trials':>7} {'steps':>6} {'acknowledged':>13} "
        f"{'violations':>11} {'recovery p50/p99':>17} {'wall':>6}  measured"
    )


def line(outcome: Outcome) -> str:
    """One campaign in one line."""
    back = outcome.recovery_s
    recovery = f"{percentile(back, 50):.2f}/{percentile(back, 99):.2f} s" if back else "-"
    measured = ", ".join(f"{name} {value:.4g}" for name, value in outcome.measures.items())
    return (
        f"{outcome.name:12} {outcome.seed:6} {outcome.num_trials:7} {outcome.num_steps:6} "
        f"{outcome.num_acknowledged:13} {len(outcome.violations):11} {recovery:>17} "
        f"{outcome.wall_s:4.0f} s  {measured}"
    )


def write_report(path: Path, seed: int, outcomes: Sequence[Outcome]) -> None:
    """Write everything that was done and found."""
    names = list(dict.fromkeys(outcome.name for outcome in outcomes))
    report = {
        "name": "chaos-broker",
        "seed": seed,
        "hardware": hardware_name(),
        "versions": versions("pyzmq", "msgspec"),
        "trials": sum(outcome.num_trials for outcome in outcomes),
        "acknowledged": sum(outcome.num_acknowledged for outcome in outcomes),
        "violations": [text for outcome in outcomes for text in outcome.violations],
        "campaigns": {
            name: _summary([outcome for outcome in outcomes if outcome.name == name])
            for name in names
        },
        "not_covered": NOT_COVERED,
        "runs": [vars(outcome) for outcome in outcomes],
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _summary(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """All runs of one campaign."""
    recovery = [seconds for outcome in outcomes for seconds in outcome.recovery_s]
    measures = [outcome.measures for outcome in outcomes]
    return {
        "trials": sum(outcome.num_trials for outcome in outcomes),
        "seeds": [outcome.seed for outcome in outcomes],
        "faults": sum((outcome.faults for outcome in outcomes), Counter()),
        "answers": sum((outcome.answers for outcome in outcomes), Counter()),
        "steps": sum(outcome.num_steps for outcome in outcomes),
        "acknowledged": sum(outcome.num_acknowledged for outcome in outcomes),
        "violations": sum(len(outcome.violations) for outcome in outcomes),
        "recovery_s": {
            "number": len(recovery),
            "p50": percentile(recovery, 50) if recovery else None,
            "p99": percentile(recovery, 99) if recovery else None,
        },
        "measures": {
            name: statistics.median(item[name] for item in measures if name in item)
            for name in dict.fromkeys(name for item in measures for name in item)
        },
        "wall_s": sum(outcome.wall_s for outcome in outcomes),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` percent of ``values`` do not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share / 100 * len(ranked)))]
