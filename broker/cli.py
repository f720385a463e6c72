"""``headrace broker``: the queue, ledger and journal between all roles."""

from __future__ import annotations

import sys

import click


@click.command("broker")
@click.argument("config_path", metavar="CONFIG")
@click.option("--name", default="broker", show_default=True, help="Name of this process.")
def broker(config_path: str, name: str) -> None:
    """Run the broker of the run that CONFIG describes."""
    from common.config_loader import load_config
    from common.lifecycle import run_async_role

    config = load_config(config_path)
    from broker.main import run_broker

    sys.exit(
        run_async_role("broker", name, config, run_broker, metrics_port=config.broker.metrics_port)
    )
