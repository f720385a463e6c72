"""``headrace eval CONFIG``: pass@1 and majority vote of a model on held-out problems."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import click

from common.config import Config, PromptSetConfig
from common.config_loader import load_config, run_paths, to_toml
from common.errors import EXIT_INTERRUPTED, FatalError
from common.files import write_atomically


@click.command("eval")
@click.argument("config_path", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="Model directory [model.path].")
@click.option("--num-prompts", type=click.IntRange(min=1), help="Problems to answer.")
@click.option("--samples", type=click.IntRange(min=1), help="Answers to each problem.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the evaluation is kept.")
@click.option("--resume", is_flag=True, help="Go on with the evaluation that --out holds.")
def evaluate(
    config_path: Path,
    model: Path | None,
    num_prompts: int | None,
    samples: int | None,
    out: Path | None,
    resume: bool,
) -> None:
    """Evaluate the model of CONFIG on its prompts; of a generated task, on held-out ones.

    The same broker, actors and verifiers as in training, with a collector in the learner's place.
    """
    from deploy.check_command import check_inputs
    from deploy.evaluation import METRICS_FILE, metrics_table, read_metrics
    from deploy.local_run import run_locally

    config = evaluation_config(config_path, model, num_prompts, samples, out)
    check_inputs(config)
    run_file = prepare_directory(config, resume=resume)
    results = Path(config.collect.output)
    if not (results / METRICS_FILE).exists():
        outcome = run_locally(config, run_file, title="evaluation")
        if outcome.exit_code == EXIT_INTERRUPTED:
            click.echo("stopped, state kept; go on with the same command and --resume", err=True)
            sys.exit(EXIT_INTERRUPTED)
    click.echo(metrics_table(read_metrics(results)))
    click.echo(f"kept in {results}")


def evaluation_config(
    config_path: Path,
    model: Path | None = None,
    num_prompts: int | None = None,
    samples: int | None = None,
    out: Path | None = None,
) -> Config:
    """The configuration of an evaluation, derived from the training run in ``config_path``."""
    training = load_config(config_path)
    root = (out or Path(training.run.directory) / "evaluation").absolute()
    overrides: dict[str, object] = {
        "run.kind": "collect",
        "run.id": f"{training.run.id[:59]}-eval",
        "run.directory": str(root),
        "collect.output": str(root / "results"),
    }
    if model is not None:
        overrides["model.path"] = str(model.absolute())
    if num_prompts is not None:
        overrides["collect.num_prompts"] = num_prompts
    if samples is not None:
        overrides["collect.samples_per_prompt"] = samples
    overrides["learner.dynamic_sampling"] = False
    if training.prompts.generator:
        overrides["prompts.split"] = "held-out"
    if training.prompts.sets:
        overrides["prompts.sets"] = [_held_out(item) for item in training.prompts.sets]
    return load_config(config_path, overrides)


def _held_out(item: PromptSetConfig) -> dict[str, object]:
    """A prompt set as it is evaluated: of a generator the held-out problems."""
    return asdict(replace(item, split="held-out") if item.generator else item)


def prepare_directory(config: Config, *, resume: bool) -> Path:
    """Write the derived run file and return its path; refuse to mix two evaluations."""
    root = run_paths(config).root
    run_file = root / "eval.toml"
    text = to_toml(config)
    if run_file.exists():
        if not resume:
            raise FatalError(
                f"{root} already holds an evaluation (add --resume to go on with it, "
                "or give another --out)"
            )
        if run_file.read_text(encoding="utf-8") != text:
            raise FatalError(
                f"{root} holds an evaluation with other settings (see {run_file}; "
                "give another --out)"
            )
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(run_file, text.encode())
    return run_file
