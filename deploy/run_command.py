"""``headrace run CONFIG``: all roles of a run on this machine, watched until the end."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from common.config_loader import load_config, run_paths
from common.errors import EXIT_INTERRUPTED, FatalError


@click.command("run")
@click.argument("config_path", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--resume", is_flag=True, help="Go on with the run that the run directory holds.")
def run(config_path: Path, resume: bool) -> None:
    """Start broker, verifiers, actors and learner of CONFIG and show how the run goes.

    A process that dies is started again. Ctrl-C stops all within ten seconds and keeps the state.
    """
    from deploy.check_command import check_inputs
    from deploy.local_run import has_state, run_locally

    config = load_config(config_path)
    check_inputs(config)
    paths = run_paths(config)
    if has_state(paths) and not resume:
        raise FatalError(
            f"run.directory {paths.root} already holds a run "
            "(add --resume to go on with it, or set another run.directory)"
        )
    outcome = run_locally(config, config_path, title=f"run {config.run.id}")
    if outcome.exit_code == EXIT_INTERRUPTED:
        click.echo(
            f"stopped, state kept in {paths.root}; go on with: headrace run {config_path} --resume",
            err=True,
        )
    else:
        click.echo(f"finished; see it with: headrace report {paths.root}")
    sys.exit(outcome.exit_code)
