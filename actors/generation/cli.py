"""``headrace actor``: parse, then import the engine's stack, then run."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click


@click.command("actor")
@click.argument("config_path", metavar="CONFIG")
@click.option("--name", default="actor-0", show_default=True, help="Name of this process.")
def actor(config_path: str, name: str) -> None:
    """Sample answers to prompts of the broker with the newest proven weights."""
    from common.config_loader import load_config
    from common.lifecycle import Process, run_async_role

    config = load_config(config_path)
    _prepare_threads(config.actor.num_threads)

    async def main(process: Process) -> None:
        from actors.generation.sampler_factory import sampler_factory
        from actors.generation.worker import run_actor

        await run_actor(process, sampler_factory(config, name))

    _leave(run_async_role("actor", name, config, main, metrics_port=config.actor.metrics_port))


def _leave(code: int) -> NoReturn:
    """End at once: unwinding the engine's modules takes seconds, and all is closed by now."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _prepare_threads(num_threads: int) -> None:
    """Set what torch reads at import: as many threads as asked for, and no C++ stack traces."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
