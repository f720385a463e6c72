"""``headrace task``: write the prompts or the cold-start corpus of a generated task."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from broker.tasks import CORPORA, Problem
from broker.tasks.finding import Problems, find_problems
from common.errors import ConfigError, FatalError
from common.files import write_atomically
from common.types import Prompt

_MAX_DRAWS_PER_PROMPT = 64


@click.command("task")
@click.argument("name", metavar="NAME")
@click.option("--split", type=click.Choice(["train", "held-out"]), default="train")
@click.option("--count", type=click.IntRange(min=1), required=True, help="Lines to write.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--kind", type=click.Choice(["prompts", "corpus"]), default="prompts")
@click.option(
    "--long-share",
    type=click.FloatRange(0.0, 1.0),
    default=0.3,
    show_default=True,
    help="Share of corpus traces that write every step down.",
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the task, its value as in TOML; may be repeated.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
def task(
    name: str,
    split: str,
    count: int,
    seed: int,
    kind: str,
    long_share: float,
    options: tuple[str, ...],
    out: Path,
) -> None:
    """Write COUNT prompts, or the cold-start corpus, of the task NAME as JSON Lines.

    NAME is chain-addition, countdown or a dataset of reasoning-gym: reasoning-gym:leg_counting.
    """
    table = _read_options(options)
    problems = find_problems(name, table, repeatable=False)
    if kind == "corpus" and split == "held-out":
        raise click.UsageError(
            "--kind corpus with --split held-out would train on the evaluation set "
            "(use --split train)"
        )
    if kind == "corpus":
        lines = corpus_lines(problems.name, table, seed=seed, count=count, long_share=long_share)
    else:
        lines = prompt_lines(problems, split=split, seed=seed, count=count)
    _write(out, lines)
    sys.stdout.write(f"{count} {kind} of {problems.name} in {out}\n")


def _read_options(terms: tuple[str, ...]) -> dict[str, Any]:
    """``("min_terms=3", 'operators=["+"]')`` as a table."""
    try:
        return tomllib.loads("\n".join(terms))
    except tomllib.TOMLDecodeError as error:
        raise click.BadParameter(
            f"--option must be NAME=VALUE with the value as in TOML: {error} (text in quotes)"
        ) from None


def prompt_lines(problems: Problems, *, split: str, seed: int, count: int) -> Iterator[str]:
    """Prompts in the format that ``prompts.file`` reads."""
    if split == "held-out":
        chosen = problems.held_out(seed, count)
    else:
        chosen = _distinct_problems(problems, seed, count)
    return (_prompt_line(problem.prompt) for problem in chosen)


def _distinct_problems(problems: Problems, seed: int, count: int) -> list[Problem]:
    """The first ``count`` problems of a stream without those that came before in it.

    Raises :class:`ConfigError` where the task has too few: a prompt file holds each id once.
    """
    found: dict[str, Problem] = {}
    for index in range(count * _MAX_DRAWS_PER_PROMPT):
        problem = problems.prompt_at(seed, index)
        found.setdefault(problem.problem_id, problem)
        if len(found) == count:
            return list(found.values())
    raise ConfigError(
        f"{problems.name} has too few training problems for --count {count}, found {len(found)} "
        f"(ask for at most {len(found)} or widen the task with --option)"
    )


def corpus_lines(
    name: str, options: Mapping[str, Any], *, seed: int, count: int, long_share: float
) -> Iterator[str]:
    """Pairs in the format that ``sft.corpus`` reads, for the task with ``options``."""
    if name not in CORPORA:
        raise ConfigError(f"{name} has no cold-start corpus (known: {', '.join(CORPORA)})")
    pairs = CORPORA[name](seed, count, long_share, **options)
    return (
        json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in pairs
    )


def _prompt_line(prompt: Prompt) -> str:
    record = {"prompt_id": prompt.prompt_id, "prompt": prompt.text, "task": prompt.task}
    return json.dumps({**record, **json.loads(prompt.reference_json)})


def _write(path: Path, lines: Iterator[str]) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise FatalError(
            f"--out {path}: cannot be written: {error.strerror} (choose another file)"
        ) from None
