"""``headrace bench NAME``: measure, print, and say whether the goal was met."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

BENCHMARK_NAMES = (
    "attention",
    "broker",
    "checkpoint",
    "code",
    "codec",
    "control",
    "head",
    "latency",
    "learner",
    "math",
    "packing",
    "pipeline",
    "reward-model",
    "scheduler",
    "staleness",
    "fleet",
    "trl",
)


@click.command("bench")
@click.argument("name", type=click.Choice(BENCHMARK_NAMES))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--save", type=click.Path(path_type=Path), default=None, help="Write the JSON object to a file."
)
def bench(name: str, as_json: bool, save: Path | None) -> None:
    """Run benchmark NAME side by side with its baseline."""
    from deploy.bench import BENCHMARKS

    result = BENCHMARKS[name]()
    text = json.dumps(dataclasses.asdict(result), indent=2, default=str)
    if save is not None:
        save.write_text(text + "\n", encoding="utf-8")
    if as_json:
        click.echo(text)
        return
    verdict = "met" if result.passed else "NOT met"
    click.echo(f"{result.name}: {result.ratio:.3g} against {result.baseline}")
    click.echo(f"goal {result.goal}: {verdict}   ({result.hardware})")
    for key, value in result.details.items():
        click.echo(f"  {key}: {value}")
