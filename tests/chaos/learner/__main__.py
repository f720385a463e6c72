"""``make chaos-learner``: kill, halt and stop learners of 1, 2 and 4 ranks; print what it broke.

Usage: python -m tests.chaos.learner [--ranks 1 2 4] [--kills N] [--seed 1] [--json FILE]

Trials follow one another: beside each other they would disturb the times that are judged. The
report is written after each of them, so that an interrupted campaign keeps what it found.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common.errors import EXIT_INTERRUPTED
from tests.chaos.learner.campaign import Campaign, Outcome, numbered_deaths, random_deaths
from tests.chaos.learner.rank import Zygote
from tests.chaos.learner.report import head, line, progress, write_report

SHARES = {1: 0.6, 2: 0.28, 4: 0.12}
"""Of all deaths, by number of ranks: the more ranks, the longer a life."""
LAST_OPERATION = 60
"""Some steps and two checkpoints of one life."""
PROGRESS_EVERY = 10


def main() -> int:
    """Run the campaigns; the exit code is 1 when a promise was broken."""
    options = _options()
    outcomes: list[Outcome] = []
    print(head(), flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        zygote = Zygote(Path(folder) / "model")

        def tell(outcome: Outcome) -> None:
            if options.json:
                write_report(options.json, options.seed, [*outcomes, outcome])
            if outcome.num_trials % PROGRESS_EVERY == 0:
                print(progress(outcome), file=sys.stderr, flush=True)

        try:
            for world_size in options.ranks:
                number = max(2, round(SHARES.get(world_size, 0.15) * options.kills))
                for name in ("numbered", "random"):
                    seed = options.seed
                    outcomes.append(run(name, number // 2, world_size, seed, zygote, tell))
                    print(line(outcomes[-1]), flush=True)
                    if options.json:
                        write_report(options.json, seed, outcomes)
        finally:
            zygote.close()
    broken = [f"{item.name}: {text}" for item in outcomes for text in item.violations]
    for violation in broken[:50]:
        print(f"  {violation}")
    total = sum(outcome.num_trials for outcome in outcomes)
    print(f"{total} trials, seed {options.seed}: {len(broken)} violations")
    return 1 if broken else 0


def run(
    name: str,
    number: int,
    world_size: int,
    seed: int,
    zygote: Zygote,
    tell: Callable[[Outcome], None],
) -> Outcome:
    """One campaign of ``number`` deaths in a folder of its own."""
    dice = random.Random(seed)
    if name == "numbered":
        spread = [1 + place * LAST_OPERATION // number for place in range(number)]
        deaths = list(numbered_deaths(spread, world_size))
    else:
        deaths = list(random_deaths(number, world_size, dice))
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        try:
            return Campaign(Path(folder), name, seed, world_size, zygote, tell).run(deaths)
        except KeyboardInterrupt:
            zygote.close()  # its ranks write into the folder
            raise


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos-learner", description=__doc__)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--kills", type=int, default=300, help="deaths over all numbers of ranks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None, help="write the report here")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted: what was begun is not judged", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
