"""The command ``headrace collector``: the consumer of an evaluation run."""

from __future__ import annotations

import sys

import click


@click.command("collector")
@click.argument("config_path", metavar="CONFIG")
@click.option("--name", default="collector", show_default=True, help="Name of this process.")
def collector(config_path: str, name: str) -> None:
    """Write metrics.json and samples.jsonl of the collect run that CONFIG describes."""
    from actors.collection.collector import check_collect, serve
    from common.config_loader import load_config
    from common.lifecycle import run_async_role

    config = load_config(config_path)
    check_collect(config)
    sys.exit(run_async_role("collector", name, config, serve, metrics_port=0))
