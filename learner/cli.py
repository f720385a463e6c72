"""``headrace learner``, ``sft`` and ``tiny-model``: parse, then import torch, then run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


@click.command("learner")
@click.argument("config_path", metavar="CONFIG")
@click.option("--name", default="learner", show_default=True, help="Name of rank 0.")
@click.option(
    "--replay",
    "replay_step",
    type=click.IntRange(min=0),
    metavar="STEP",
    help="Compute the batch of this policy_step again and show what each token contributed.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for what a replay finds.  [default: replay-STEP]",
)
def learner(config_path: str, name: str, replay_step: int | None, out: Path | None) -> None:
    """Train on verified groups of the broker; under torchrun as many ranks as it starts.

    With --replay nothing of the run is touched and no broker is asked: see docs/debugging.md.
    """
    from common.config_loader import load_config

    config = load_config(config_path)
    _prepare_threads(config.learner.num_threads)
    if replay_step is not None:
        from learner.recorder.replay import run_replay

        sys.exit(run_replay(config, replay_step, out or Path(f"replay-{replay_step}")))
    from learner.main import run_learner

    sys.exit(run_learner(config, name))


@click.command("sft")
@click.argument("config_path", metavar="CONFIG")
def sft(config_path: str) -> None:
    """Fine-tune a model on the prompt and completion pairs of [sft] corpus."""
    from common.config_loader import load_config

    config = load_config(config_path)
    _prepare_threads(config.learner.num_threads)
    from learner.sft import run_sft

    run_sft(config)


@click.command("tiny-model")
@click.option("--corpus", required=True, type=click.Path(path_type=Path), help="JSON Lines corpus.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory to write.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random weights.")
@click.option("--hidden-size", default=128, show_default=True, help="Width of the model.")
@click.option("--num-layers", default=2, show_default=True, help="Decoder layers.")
@click.option("--max-positions", default=256, show_default=True, help="Longest text in tokens.")
def tiny_model(
    corpus: Path, out: Path, seed: int, hidden_size: int, num_layers: int, max_positions: int
) -> None:
    """Make a small random model whose tokenizer knows every character of CORPUS."""
    _prepare_threads(1)
    from learner.models.tiny_model import TinyModelShape, build_tiny_model
    from learner.sft_corpus import read_corpus

    pairs = read_corpus(corpus)
    shape = TinyModelShape(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=max(1, hidden_size // 32),
        num_kv_heads=max(1, hidden_size // 32),
        intermediate_size=3 * hidden_size,
        max_positions=max_positions,
    )
    build_tiny_model(
        out, (text for pair in pairs for text in (pair.prompt, pair.completion)), shape, seed=seed
    )
    click.echo(f"{out}")


def _prepare_threads(num_threads: int) -> None:
    """What torch reads when it is imported; torchrun sets its own value for its ranks."""
    os.environ.setdefault("OMP_NUM_THREADS", str(num_threads))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
