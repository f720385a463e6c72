"""``python -m broker.simulation NAME``: run a study and print its figures as one JSON object."""

from __future__ import annotations

import json

import click

STUDIES = ("scheduler", "staleness", "fleet")


@click.command()
@click.argument("name", type=click.Choice(STUDIES))
@click.option("--quick", is_flag=True, help="A shorter run, for tests.")
def main(name: str, quick: bool) -> None:
    """Run study NAME."""
    click.echo(json.dumps(_study(name, quick)))


def _study(name: str, quick: bool) -> dict[str, object]:
    if name == "scheduler":
        from broker.simulation.scheduler_study import scheduler_study

        return scheduler_study(quick)
    if name == "staleness":
        from broker.simulation.staleness_study import staleness_study

        return staleness_study(quick)
    from broker.simulation.fleet_study import fleet_study

    return fleet_study(quick)


if __name__ == "__main__":
    main()
