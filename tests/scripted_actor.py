"""A real actor process whose engine is a script: ``python -m tests.scripted_actor CONFIG``.

``--pause-after N`` stops sampling after N rollouts, with everything that was leased still held.
"""

from __future__ import annotations

import argparse
import sys

from actors.generation.sampler import SampledCompletion
from actors.generation.worker import run_actor
from common.config_loader import load_config
from common.lifecycle import Process, run_async_role
from tests.builders import version
from tests.scripted_sampler import ScriptedSampler


class PausingSampler(ScriptedSampler):
    """Closes its gate after so many completions."""

    def __init__(self, num_completions: int) -> None:
        super().__init__(version(0))
        self._left = num_completions

    def step(self) -> list[SampledCompletion]:
        done = super().step()
        self._left -= len(done)
        if self._left <= 0:
            self.gate.clear()
        return done


def main() -> int:
    """Run the actor until it is stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--name", default="actor-0")
    parser.add_argument("--pause-after", type=int, default=1 << 30)
    arguments = parser.parse_args()

    async def actor(process: Process) -> None:
        await run_actor(process, lambda: PausingSampler(arguments.pause_after))

    return run_async_role(
        "actor", arguments.name, load_config(arguments.config), actor, metrics_port=0
    )


if __name__ == "__main__":
    sys.exit(main())
