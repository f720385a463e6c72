"""``headrace plan CONFIG``: how to split a cluster, and what to expect of it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from common.config_loader import load_config


@click.command("plan")
@click.argument("config_path", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option(
    "--cluster",
    "cluster_file",
    type=click.Path(path_type=Path),
    default=None,
    help="TOML file that describes the cluster; docs/scaling.md lists its keys.",
)
@click.option("--gpus", type=int, default=None, help="GPUs for actors and learner together.")
@click.option("--gpu", default=None, help="A100, H100, H200 or B200.")
@click.option("--mean-tokens", type=float, default=None, help="Mean answer, in tokens.")
@click.option("--prompt-tokens", type=float, default=None, help="Mean prompt, in tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(
    config_path: Path,
    cluster_file: Path | None,
    gpus: int | None,
    gpu: str | None,
    mean_tokens: float | None,
    prompt_tokens: float | None,
    as_json: bool,
) -> None:
    """Say how many GPUs actors and learner of CONFIG should have, and what limits them.

    An analytic model: it reads the run file and the model's config.json and starts nothing.
    """
    from deploy.planning.architecture import read_architecture
    from deploy.planning.cluster import read_cluster
    from deploy.planning.plan import make_plan, to_json
    from deploy.planning.report import to_text

    config = load_config(config_path)
    given = {
        "cluster.gpus": gpus,
        "cluster.gpu": gpu,
        "workload.mean_tokens": mean_tokens,
        "workload.prompt_tokens": prompt_tokens,
    }
    options = {key: value for key, value in given.items() if value is not None}
    cluster = read_cluster(cluster_file, options)
    made = make_plan(config, cluster, read_architecture(Path(config.model.path)))
    if as_json:
        click.echo(json.dumps(to_json(made), indent=2))
    else:
        click.echo(to_text(made))
