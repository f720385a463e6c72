"""``headrace demo``: the main job on a laptop, from an empty folder to a report.

A tiny model is made, fine-tuned on a mixed corpus, evaluated, trained by asynchronous GRPO with all
roles as processes of their own, and evaluated again. Each stage is a ``headrace`` command.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from common.config_loader import load_config, run_paths, to_toml
from common.errors import EXIT_INTERRUPTED, FatalError
from common.files import write_atomically
from deploy.demo_config import DemoPaths


@click.command("demo")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder [runs/demo-seed<N>].")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps.")
@click.option("--resume", is_flag=True, help="Go on where an interrupted demo stopped.")
@click.option("--force", is_flag=True, help="Delete the demo that the folder holds, start anew.")
def demo(seed: int, out: Path | None, steps: int | None, resume: bool, force: bool) -> None:
    """Watch a tiny model learn to think: cold start, asynchronous GRPO with vLLM, a report.

    Takes a few minutes on two cores and needs no GPU and no download.
    """
    from deploy.demo_config import NUM_STEPS

    num_steps = steps or NUM_STEPS
    paths = DemoPaths((out or Path("runs") / f"demo-seed{seed}").absolute())
    prepare_folder(paths, resume=resume, force=force)
    write_configs(paths, seed, num_steps)
    if not run_stages(paths, seed, num_steps):
        again = f"headrace demo --seed {seed} --steps {num_steps} --out {paths.root} --resume"
        click.echo(f"stopped, state kept in {paths.root}; go on with: {again}", err=True)
        sys.exit(EXIT_INTERRUPTED)
    finish(paths, seed, num_steps)


def prepare_folder(paths: DemoPaths, *, resume: bool, force: bool) -> None:
    """Make the demo's folder; refuse to touch what it holds unless told what to do with it."""
    is_demo = paths.stages.exists()
    if paths.root.is_dir() and any(paths.root.iterdir()) and not is_demo:
        raise FatalError(f"--out {paths.root} holds other files (give a new or empty folder)")
    if is_demo and not (resume or force):
        what = "a finished demo" if paths.summary.exists() else "an interrupted demo"
        cure = "--resume to go on with it" if not paths.summary.exists() else "see its report.html"
        raise FatalError(
            f"{paths.root} holds {what} ({cure}, --force to start anew, or give another --out)"
        )
    if is_demo and force:
        shutil.rmtree(paths.root)
    paths.root.mkdir(parents=True, exist_ok=True)


def write_configs(paths: DemoPaths, seed: int, num_steps: int) -> None:
    """Write the run files that the stages read; the same arguments give the same files."""
    from deploy.demo_config import sft_config, train_config
    from deploy.demo_stages import StageLedger

    StageLedger.open(paths, seed, num_steps).save()
    for name, config in (
        ("sft.toml", sft_config(paths, seed)),
        ("train.toml", train_config(paths, seed, num_steps)),
    ):
        write_atomically(paths.root / name, to_toml(config).encode())


def run_stages(paths: DemoPaths, seed: int, num_steps: int) -> bool:
    """Run what is not done yet; False when a stop was asked for.

    Raises :class:`FatalError` when a stage fails.
    """
    from deploy.demo_progress import DemoProgress
    from deploy.demo_stages import Stage, StageLedger, demo_stages
    from deploy.progress import ProgressDisplay
    from deploy.stage_runner import StageEnd, run_stage_to_its_end
    from deploy.supervisor import stop_on_signals

    ledger = StageLedger.open(paths, seed, num_steps)
    stages = demo_stages(paths, seed, num_steps)
    progress = DemoProgress(paths, stages, ledger)
    display = ProgressDisplay(progress.read)
    with stop_on_signals() as stop, display:
        for stage in stages:
            if ledger.is_done(stage.name):
                continue
            log_file = paths.root / "logs" / f"{stage.name}.log"

            def begin(stage: Stage = stage) -> None:
                progress.begin(stage)
                display.show()

            def note(end: StageEnd, stage: Stage = stage) -> None:
                ledger.add(stage.name, end.result)
                progress.end(stage, end)

            end = run_stage_to_its_end(stage, log_file, stop, display.tick, begin, note)
            if end.exit_code is None:
                return False
            if end.exit_code != 0:
                raise _failure(stage.name, end.exit_code, log_file)
    return True


def finish(paths: DemoPaths, seed: int, num_steps: int) -> None:
    """Write summary and report and print the headline."""
    from deploy.demo_stages import StageLedger
    from deploy.demo_summary import (
        DemoFacts,
        engine_name,
        read_training,
        summarize,
        write_summary,
    )
    from deploy.evaluation import read_metrics
    from deploy.report import write_report

    config = load_config(paths.root / "train.toml")
    steps, scrapes, final_status = read_training(run_paths(config))
    facts = DemoFacts(
        seed=seed,
        before=read_metrics(paths.evaluation("before") / "results"),
        after=read_metrics(paths.evaluation("after") / "results"),
        steps=steps,
        scrapes=scrapes,
        final_status=final_status,
        stages=StageLedger.open(paths, seed, num_steps).results,
        max_policy_lag=config.learner.max_policy_lag,
        engine=engine_name(config.actor.engine),
    )
    summary = summarize(facts)
    write_summary(paths.summary, summary)
    report = write_report(paths.root)
    click.echo(
        f"pass@1 {summary['pass_at_1_before']:.3f} -> {summary['pass_at_1_after']:.3f}, "
        f"response length {summary['mean_length_before']:.1f} -> "
        f"{summary['mean_length_after']:.1f} tokens, in {summary['wall_seconds']:.0f} s"
    )
    click.echo(f"report: {report}")


def _failure(stage: str, exit_code: int, log_file: Path) -> FatalError:
    from deploy.log_tail import last_error_line, read_tail
    from deploy.restart_policy import describe_exit

    said = last_error_line(read_tail(log_file)) or "it said nothing"
    return FatalError(
        f"stage {stage} ended with {describe_exit(exit_code)}: {said} "
        f"(log: {log_file}; --resume tries this stage again)"
    )
