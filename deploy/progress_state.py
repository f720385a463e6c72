"""What the progress display shows, computed from telemetry: pure, rendered by deploy.progress."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deploy.run_analysis import role_times, seconds_left, series, tokens_per_second
from deploy.telemetry_records import Scrape, StepRecord

_BARS = "▁▂▃▄▅▆▇█"
_RECENT_S = 20.0


class StageState(enum.Enum):
    """Where one stage of the demo stands."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StageLine:
    """One stage in the list above the figures."""

    title: str
    state: StageState
    seconds: float | None = None
    result: str = ""


@dataclass(frozen=True, slots=True)
class ProgressState:
    """One moment of a run, ready to be shown."""

    title: str
    steps_done: int = 0
    num_steps: int = 0
    reward: float | None = None
    accuracy: float | None = None
    response_length: float | None = None
    lag_max: int | None = None
    max_policy_lag: int | None = None
    tokens_per_second: float = 0.0
    seconds_left: float | None = None
    rewards: tuple[float, ...] = ()
    lengths: tuple[float, ...] = ()
    idle_ratios: dict[str, float] = field(default_factory=dict)
    process_states: dict[str, str] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    """Of supervised fine-tuning, which has no rewards."""
    num_answered: int = 0
    """Prompts answered and verified, in a run that collects."""
    num_prompts: int = 0
    stages: tuple[StageLine, ...] = ()


def run_progress(
    title: str,
    steps: Sequence[StepRecord],
    scrapes: Sequence[Scrape],
    *,
    num_steps: int,
    max_policy_lag: int | None,
    stages: Sequence[StageLine] = (),
) -> ProgressState:
    """The state of a run from its batches (by step) and scrapes (by time) so far."""
    newest = steps[-1] if steps else None
    recent = [s for s in scrapes if s.time >= scrapes[-1].time - _RECENT_S]
    times = role_times(recent) if len(recent) > 1 else {}
    processes = scrapes[-1].processes if scrapes else {}
    return ProgressState(
        title=title,
        steps_done=newest.policy_step + 1 if newest else 0,
        num_steps=num_steps,
        reward=newest.reward_mean if newest else None,
        accuracy=newest.accuracy_mean if newest else None,
        response_length=newest.response_length_mean if newest else None,
        lag_max=newest.lag_max if newest else None,
        max_policy_lag=max_policy_lag,
        tokens_per_second=tokens_per_second(recent),
        seconds_left=seconds_left(steps, num_steps),
        rewards=_values(steps, lambda step: step.reward_mean),
        lengths=_values(steps, lambda step: step.response_length_mean),
        idle_ratios={role: time.idle_ratio for role, time in sorted(times.items())},
        process_states={name: process.state for name, process in sorted(processes.items())},
        stages=tuple(stages),
    )


def collect_progress(
    title: str, scrapes: Sequence[Scrape], *, num_prompts: int, stages: Sequence[StageLine] = ()
) -> ProgressState:
    """The state of a run without steps: how many prompts are answered."""
    recent = [s for s in scrapes if s.time >= scrapes[-1].time - _RECENT_S]
    processes = scrapes[-1].processes if scrapes else {}
    groups = processes["broker"].groups if "broker" in processes else {}
    open_groups = groups.get("leased", 0.0) + groups.get("pending", 0.0)
    return ProgressState(
        title=title,
        tokens_per_second=tokens_per_second(recent),
        process_states={name: process.state for name, process in sorted(processes.items())},
        num_answered=round(max(0.0, groups.get("admitted", 0.0) - open_groups)),
        num_prompts=num_prompts,
        stages=tuple(stages),
    )


def _values(
    steps: Sequence[StepRecord], read: Callable[[StepRecord], float | None]
) -> tuple[float, ...]:
    return tuple(value for _, value in series(steps, read))


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """``values`` as a line of block characters, averaged down to ``width`` of them."""
    if not values:
        return ""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def format_duration(seconds: float) -> str:
    """``75`` as ``1:15``, ``3700`` as ``1:01:40``."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def plain_line(state: ProgressState) -> str:
    """One line for logs and pipes; empty when there is nothing to tell yet."""
    if state.num_answered:
        return (
            f"{state.title}: answered {state.num_answered}/{state.num_prompts} prompts"
            f" | {state.tokens_per_second:,.0f} tokens/s"
        )
    if not state.steps_done:
        return _starting_line(state)
    if state.losses:
        return (
            f"{state.title}: step {state.steps_done}/{state.num_steps}"
            f" | loss {state.losses[-1]:.3f}"
        )
    parts = [f"{state.title}: step {state.steps_done}/{state.num_steps}"]
    if state.reward is not None:
        parts.append(f"reward {state.reward:.3f}")
    if state.accuracy is not None:
        parts.append(f"accuracy {state.accuracy:.3f}")
    if state.response_length is not None:
        parts.append(f"length {state.response_length:.1f} tokens")
    parts += [f"lag {state.lag_max}", f"{state.tokens_per_second:,.0f} tokens/s"]
    if state.seconds_left is not None:
        parts.append(f"{format_duration(state.seconds_left)} left")
    return " | ".join(parts)


def _starting_line(state: ProgressState) -> str:
    states = state.process_states
    if not states:
        return ""
    parts = [f"{state.title}: starting"]
    for label, wanted in (("ready", True), ("not yet", False)):
        names = [name for name, value in states.items() if (value == "ready") is wanted]
        parts += [f"{label}: {' '.join(names)}"] if names else []
    return " | ".join(parts)
