"""The commands ``headrace verifier`` (a role) and ``headrace verify`` (JSON Lines in and out)."""

from __future__ import annotations

import sys

import click

from actors.verification.registry import VERIFIERS
from common.config import RewardWeight, VerifierConfig
from common.errors import EXIT_FATAL


@click.command("verifier")
@click.argument("config_path", metavar="CONFIG")
@click.option("--name", default="verifier-0", show_default=True, help="Name of this process.")
def verifier(config_path: str, name: str) -> None:
    """Judge rollouts for the run that CONFIG describes, until stopped."""
    from actors.verification.reward import check_rewards
    from common.config_loader import load_config

    config = load_config(config_path)
    check_rewards(config.verifier.rewards)

    from actors.verification.worker import serve
    from common.lifecycle import run_async_role

    port = config.verifier.metrics_port
    sys.exit(run_async_role("verifier", name, config, serve, metrics_port=port))


def _read_kind(_: click.Context, __: click.Parameter, value: str) -> str:
    if value not in VERIFIERS:
        raise click.BadParameter(f"no verifier for {value!r} (known kinds: {', '.join(VERIFIERS)})")
    return value


def _read_rewards(
    _: click.Context, __: click.Parameter, value: str | None
) -> tuple[RewardWeight, ...]:
    """``accuracy=1,format=0.5``; a name alone has weight 1."""
    from actors.verification.reward import check_rewards
    from common.errors import ConfigError

    rewards = []
    for term in value.split(",") if value else ():
        name, given, weight = term.partition("=")
        try:
            rewards.append(RewardWeight(name=name.strip(), weight=float(weight) if given else 1.0))
        except ValueError:
            raise click.BadParameter(f"a weight must be a number, got {weight!r}") from None
    try:
        check_rewards(rewards)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
    return tuple(rewards)


@click.command("verify")
@click.option("--kind", required=True, callback=_read_kind, help=f"One of {', '.join(VERIFIERS)}.")
@click.option(
    "--rewards",
    callback=_read_rewards,
    metavar="TERMS",
    help="Terms of the reward, such as accuracy=1,format=1. By default the kind's own.",
)
@click.option(
    "--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes."
)
@click.option(
    "--wall-limit",
    type=click.FloatRange(0.01, 3600.0),
    default=VerifierConfig.wall_limit_s,
    show_default=True,
    help="Seconds for one line.",
)
@click.option(
    "--memory-limit",
    type=click.IntRange(64 << 20),
    default=VerifierConfig.memory_limit_bytes,
    show_default=True,
    help="Bytes of address space of one process.",
)
def verify(
    kind: str,
    rewards: tuple[RewardWeight, ...],
    workers: int,
    wall_limit: float,
    memory_limit: int,
) -> None:
    """Judge JSON Lines from standard input; one JSON line each on standard output, in order.

    A line has "id", "completion" and the fields of its kind: arithmetic: "gold"; countdown:
    "numbers" and "target"; format: "template" (r1-zero or special-token).
    """
    import uvloop

    from actors.verification.child import ChildLimits
    from actors.verification.verify_lines import verify_lines

    own_term = RewardWeight(name="format" if kind == "format" else "accuracy")
    limits = ChildLimits(wall_limit, memory_limit)
    work = verify_lines(kind, rewards or (own_term,), limits, workers, source_fd=0, target_fd=1)
    try:
        uvloop.run(work)
    except* BrokenPipeError:  # the reader has seen enough
        sys.exit(EXIT_FATAL)
