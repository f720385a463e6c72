"""The commands ``headrace verifier`` (a role) and ``headrace verify`` (JSON Lines in and out)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, get_args

import click

from actors.verification.cli_options import (
    read_extract,
    read_kind,
    read_rewards,
    read_seconds,
)
from common.answer_conventions import CONVENTIONS, Convention
from common.config import Config, RewardWeight, VerifierConfig
from common.errors import EXIT_FATAL, ConfigError, FatalError

if TYPE_CHECKING:
    from actors.verification.verify_lines import LineRun

_OWN_NAMES = frozenset({"format", "language"})
"""Kinds that are terms of the reward themselves; of the others the term is ``accuracy``."""


@click.command("verifier")
@click.argument("config_path", metavar="CONFIG")
@click.option("--name", default="verifier-0", show_default=True, help="Name of this process.")
def verifier(config_path: str, name: str) -> None:
    """Judge rollouts for the run that CONFIG describes, until stopped."""
    from actors.verification.backends import known_kinds
    from actors.verification.reward import check_rewards
    from common.config_loader import load_config

    config = load_config(config_path)
    check_rewards(config.verifier.rewards, known_kinds())

    from actors.verification.role import serve
    from common.lifecycle import run_async_role

    port = config.verifier.metrics_port
    sys.exit(run_async_role("verifier", name, config, serve, metrics_port=port))


@click.command("verify")
@click.option(
    "--kind",
    required=True,
    callback=read_kind,
    help="Kind of the task, such as math, code, choice, format or language; a wrong one lists all.",
)
@click.option(
    "--rewards",
    callback=read_rewards,
    metavar="TERMS",
    help="Terms of the reward, such as accuracy=1,format=1, those of CONFIG too. By default the "
    "kind's own.",
)
@click.option(
    "--extract",
    callback=read_extract,
    metavar="CONVENTIONS",
    help="Math: where the answer stands, in order, for lines that do not say: some of "
    f"{', '.join(get_args(Convention))}.  [default: {','.join(CONVENTIONS)}]",
)
@click.option("--input", "input_path", metavar="FILE", help="Read here, not from standard input.")
@click.option("--output", "output_path", metavar="FILE", help="Write here, not to standard output.")
@click.option(
    "--inside-thought",
    is_flag=True,
    help="The prompts ended in <think>. Else those do that --config or a line's prompt shows to.",
)
@click.option(
    "--all-or-nothing/--share",
    default=True,
    show_default=True,
    help="Code: 1 only when every test passes, or the share of tests passed.",
)
@click.option("--config", "config_path", metavar="CONFIG", help="Take [verifier] from a run file.")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes.  [default: 1]")
@click.option(
    "--wall-limit",
    type=click.FloatRange(0.01, 3600.0),
    callback=read_seconds,
    help=f"Seconds for one line.  [default: {VerifierConfig.wall_limit_s:g}]",
)
@click.option(
    "--memory-limit",
    type=click.IntRange(64 << 20),
    help=f"Bytes of memory of one process.  [default: {VerifierConfig.memory_limit_bytes}]",
)
@click.option(
    "--unsafe-no-sandbox",
    is_flag=True,
    help="Code: run programs without isolation where no sandbox holds.",
)
@click.option("--quiet", is_flag=True, help="Neither progress nor summary on standard error.")
def verify(
    kind: str,
    rewards: tuple[RewardWeight, ...],
    extract: tuple[Convention, ...],
    input_path: str | None,
    output_path: str | None,
    inside_thought: bool,
    all_or_nothing: bool,
    config_path: str | None,
    workers: int | None,
    wall_limit: float | None,
    memory_limit: int | None,
    unsafe_no_sandbox: bool,
    quiet: bool,
) -> None:
    """Judge JSON Lines from standard input; one JSON line each on standard output, in order.

    A line has "id", "completion" and the fields of its kind: math, arithmetic: "gold"; code:
    "language" and "tests"; choice: "gold"; countdown: "numbers" and "target"; format: "template"
    (r1-zero or special-token); language: "target"; task: "task" and "entry".
    """
    from actors.verification.verify_lines import LineRun

    config = _settings(config_path, workers, wall_limit, memory_limit)
    if extract:
        config = dataclasses.replace(config, extract=extract)
    if inside_thought:
        config = dataclasses.replace(config, inside_thought="always")
    if unsafe_no_sandbox:
        config = dataclasses.replace(config, unsafe_no_sandbox=True)
    terms = _terms(kind, rewards, config.rewards if config_path else ())
    if not all_or_nothing:
        terms = tuple(_by_share(term) if term.kind == "code" else term for term in terms)
    run = LineRun(kind, terms, config)
    with _opened(input_path, output_path) as (source_fd, target_fd):
        _run(run, source_fd, target_fd, quiet)


def _settings(
    config_path: str | None, workers: int | None, wall_limit: float | None, memory_limit: int | None
) -> VerifierConfig:
    """``[verifier]`` of the run file, or its defaults, with the options of the command on top."""
    config = VerifierConfig()
    if config_path is not None:
        from common.config_loader import load_config

        config = _of_run(load_config(config_path))
    return dataclasses.replace(
        config,
        num_workers=workers or config.num_workers,
        wall_limit_s=wall_limit or config.wall_limit_s,
        memory_limit_bytes=memory_limit or config.memory_limit_bytes,
    )


def _of_run(config: Config) -> VerifierConfig:
    """``[verifier]``, told whether the run's template opens the reasoning of every prompt."""
    from common.completions import template_opens_thought

    verifier = config.verifier
    if template_opens_thought(verifier.inside_thought, config.prompts.template, config.model.path):
        verifier = dataclasses.replace(verifier, inside_thought="always")
    return verifier


def _terms(
    kind: str, rewards: tuple[RewardWeight, ...], known: tuple[RewardWeight, ...]
) -> tuple[RewardWeight, ...]:
    """The terms that were asked for, or the kind's own, whose fields are those of the line.

    A name of ``known``, the terms of the run file, is that term with the weight asked for.
    """
    from actors.verification.backends import known_kinds
    from actors.verification.reward import check_rewards

    own = RewardWeight(name=kind if kind in _OWN_NAMES else "accuracy", kind=kind)
    by_name = {**{term.name: term for term in known}, own.name: own}
    terms = tuple(
        dataclasses.replace(by_name.get(term.name, term), weight=term.weight)
        for term in rewards or (own,)
    )
    try:
        check_rewards(terms, known_kinds())
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    return terms


def _by_share(term: RewardWeight) -> RewardWeight:
    return dataclasses.replace(term, options={**term.options, "all_or_nothing": False})


@contextlib.contextmanager
def _opened(input_path: str | None, output_path: str | None) -> Iterator[tuple[int, int]]:
    """Descriptors to read from and to write to; raises :class:`FatalError` for bad files."""
    _require_standard_streams()
    with contextlib.ExitStack() as files:
        source_fd, target_fd = 0, 1
        if input_path is not None:
            source_fd = _open_file(input_path, os.O_RDONLY)
            files.callback(os.close, source_fd)
        if output_path is not None:
            target_fd = _open_file(output_path, os.O_WRONLY | os.O_CREAT)
            files.callback(os.close, target_fd)
            _empty_unless_input(output_path, target_fd, source_fd)
        yield source_fd, target_fd


def _require_standard_streams() -> None:
    """A closed one is the next descriptor that is opened: answers would go to a stranger."""
    for number, name in enumerate(("input", "output", "error")):
        try:
            os.fstat(number)
        except OSError:
            raise FatalError(
                f"standard {name} is closed (redirect it to a file or to /dev/null)"
            ) from None


def _empty_unless_input(path: str, target_fd: int, source_fd: int) -> None:
    """The output is emptied only once it is known to be another file, whatever its name is."""
    target = os.fstat(target_fd)
    if os.path.samestat(target, os.fstat(source_fd)) and stat.S_ISREG(target.st_mode):
        raise FatalError(f"{path}: is the input as well (name another output)")
    if stat.S_ISREG(target.st_mode):
        os.ftruncate(target_fd, 0)


def _open_file(path: str, flags: int) -> int:
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        raise FatalError(f"{path}: cannot be opened: {error.strerror} (check the path)") from None


def _run(run: LineRun, source_fd: int, target_fd: int, quiet: bool) -> None:
    import uvloop

    from actors.verification.verify_lines import verify_lines

    with contextlib.ExitStack() as shown:
        if not quiet and sys.stderr.isatty():
            from actors.verification.verify_summary import ProgressBar

            bar = shown.enter_context(ProgressBar(os.fstat(source_fd).st_size or None))
            run.on_progress = lambda state: bar.show(state.bytes_read, state.tally)
        try:
            uvloop.run(verify_lines(run, source_fd=source_fd, target_fd=target_fd))
        except* BrokenPipeError:  # the reader has seen enough
            sys.exit(EXIT_FATAL)
        except* OSError as group:
            raise FatalError(
                f"cannot read or write: {group.exceptions[0]} (check the disk)"
            ) from None
    if not quiet:
        for note in run.notes:
            print(f"headrace verify: {note}", file=sys.stderr)
        print(run.tally.summary(run.num_restarts), file=sys.stderr, flush=True)
