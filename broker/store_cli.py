"""``headrace store``: keeps arrays of rollouts, so that they need not pass through the broker."""

from __future__ import annotations

import sys

import click


@click.command("store")
@click.argument("config_path", metavar="CONFIG")
@click.option("--name", default="store-0", show_default=True, help="Name of this process.")
def store(config_path: str, name: str) -> None:
    """Run one store of the run that CONFIG describes."""
    from common.config_loader import load_config
    from common.lifecycle import run_async_role

    config = load_config(config_path)
    from broker.store_main import run_store

    sys.exit(
        run_async_role("store", name, config, run_store, metrics_port=config.stores.metrics_port)
    )
