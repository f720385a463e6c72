"""What the supervisor does when a process ends: a pure decision from exit codes and times."""

from __future__ import annotations

import enum
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import EXIT_FATAL, EXIT_OK, EXIT_USAGE


class ExitKind(enum.Enum):
    """How a process ended, by what to do next."""

    DONE = "done"
    RETRY = "retry"
    FATAL = "fatal"


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """One end of a process; ``exit_code`` is negative for a signal, as in ``subprocess``."""

    time_s: float
    exit_code: int
    was_ready: bool


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Back-off and crash-loop breaker of one process.

    A process that was serving when it died is worth many more restarts than one that never came
    up, so the two are bounded apart.
    """

    max_failed_starts: int = 3
    """Restarts in ``window_s`` of a process that ended before it was ready."""
    max_restarts: int = 20
    """Restarts in ``window_s`` whatever the state."""
    window_s: float = 600.0
    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    done_delay_s: float = 30.0
    """A role that ended with 0 is usually right that the run is over: give the consumer time."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Start the process again after ``delay_s``."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class StopRun:
    """The run cannot go on; ``reason`` is one line for a person."""

    reason: str


@dataclass(frozen=True, slots=True)
class FinishRun:
    """The consumer has all that it wanted."""


Decision = Restart | StopRun | FinishRun


def classify_exit(exit_code: int) -> ExitKind:
    """Kind of ``exit_code``: 0 is done, 1 and 2 are fatal, all others may pass.

    These are signals, and 75: of trouble that may be over, and of a learner that was stopped.
    """
    if exit_code == EXIT_OK:
        return ExitKind.DONE
    if exit_code in (EXIT_FATAL, EXIT_USAGE):
        return ExitKind.FATAL
    return ExitKind.RETRY


def describe_exit(exit_code: int) -> str:
    """``exit_code`` in words: ``"exit code 75"`` or ``"signal 9 (SIGKILL)"``."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"signal {-exit_code} ({signal.Signals(-exit_code).name})"
    except ValueError:
        return f"signal {-exit_code}"


def decide(
    policy: RestartPolicy, name: str, exits: Sequence[ProcessExit], *, is_consumer: bool
) -> Decision:
    """What to do after the last of ``exits``, the ends of the process ``name`` so far.

    ``is_consumer`` marks the learner or collector, whose end with 0 is the end of the run.
    """
    latest = exits[-1]
    kind = classify_exit(latest.exit_code)
    if kind is ExitKind.FATAL:
        return StopRun(f"{name} stopped with {describe_exit(latest.exit_code)}")
    if kind is ExitKind.DONE and is_consumer:
        return FinishRun()
    recent = [item for item in exits if item.time_s > latest.time_s - policy.window_s]
    num_failed_starts = sum(not item.was_ready for item in recent)
    if num_failed_starts > policy.max_failed_starts or len(recent) > policy.max_restarts:
        return StopRun(
            f"{name} ended {len(recent)} times within {policy.window_s:.0f} s, "
            f"{num_failed_starts} of them before it was ready; "
            f"last with {describe_exit(latest.exit_code)}"
        )
    if kind is ExitKind.DONE:
        return Restart(policy.done_delay_s)
    return Restart(min(policy.max_delay_s, policy.first_delay_s * 2.0 ** (len(recent) - 1)))
