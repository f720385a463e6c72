"""Live display of a run or of the demo: rich on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from common.clock import Clock, MonotonicClock
from deploy.progress_state import (
    ProgressState,
    StageLine,
    StageState,
    format_duration,
    plain_line,
    sparkline,
)

PLAIN_EVERY_S = 10.0
LIVE_EVERY_S = 0.5

_STAGE_MARKS = {
    StageState.PENDING: ("○", "dim"),
    StageState.RUNNING: ("●", "bold cyan"),
    StageState.DONE: ("✓", "green"),
    StageState.STOPPED: ("■", "yellow"),
    StageState.FAILED: ("✗", "bold red"),
}


class ProgressDisplay:
    """Shows ``read_state()`` whenever it is due; use as a context manager and call ``tick``."""

    def __init__(
        self,
        read_state: Callable[[], ProgressState],
        *,
        console: Console | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._read_state = read_state
        self._console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._clock = clock or MonotonicClock()
        self._live: Live | None = None
        self._next_s = self._clock.now_s()
        self._last_stages: tuple[StageLine, ...] = ()
        self._last_line = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.show()
        if self._live is not None:
            self._live.stop()

    def tick(self) -> None:
        """Show the newest state if it is time to."""
        if self._clock.now_s() >= self._next_s:
            self._next_s = self._clock.now_s() + (LIVE_EVERY_S if self._live else PLAIN_EVERY_S)
            self.show()

    def show(self) -> None:
        """Show the newest state now."""
        state = self._read_state()
        if self._live is not None:
            self._live.update(render(state), refresh=True)
            return
        for line in (*changed_stage_lines(self._last_stages, state.stages), plain_line(state)):
            if line and line != self._last_line:
                self._console.print(line, markup=False)
        self._last_stages, self._last_line = state.stages, plain_line(state)


def changed_stage_lines(before: Sequence[StageLine], after: Sequence[StageLine]) -> list[str]:
    """A line for each stage that began or ended between two looks."""
    known = {stage.title: stage.state for stage in before}
    lines = []
    for stage in after:
        if stage.state in (known.get(stage.title), StageState.PENDING):
            continue
        mark, _ = _STAGE_MARKS[stage.state]
        took = f" ({format_duration(stage.seconds)})" if stage.seconds is not None else ""
        result = f": {stage.result}" if stage.result else ""
        lines.append(f"{mark} {stage.title}{took}{result}")
    return lines


def render(state: ProgressState) -> RenderableType:
    """The whole display as one rich renderable."""
    parts: list[RenderableType] = []
    if state.stages:
        parts += [_stage_table(state.stages), Text()]
    if state.steps_done or state.process_states:
        parts.append(_run_table(state))
    return Panel(
        Group(*parts), title=Text(f"headrace · {state.title}", style="bold"), title_align="left"
    )


def _stage_table(stages: Sequence[StageLine]) -> Table:
    table = Table.grid(padding=(0, 2))
    for stage in stages:
        mark, style = _STAGE_MARKS[stage.state]
        seconds = format_duration(stage.seconds) if stage.seconds is not None else ""
        table.add_row(
            Text(f"{mark} {stage.title}", style=style), Text(seconds, style="dim"), stage.result
        )
    return table


def _run_table(state: ProgressState) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    if state.num_answered:
        bar = ProgressBar(total=state.num_prompts, completed=state.num_answered, width=32)
        table.add_row("answered", f"{state.num_answered}/{state.num_prompts} prompts", bar)
        table.add_row("sampling", f"{state.tokens_per_second:,.0f} tokens/s")
        return table
    if not state.steps_done:
        table.add_row("processes", _process_states(state))
        return table
    left = "" if state.seconds_left is None else f"{format_duration(state.seconds_left)} left"
    bar = ProgressBar(total=max(1, state.num_steps), completed=state.steps_done, width=32)
    table.add_row("step", f"{state.steps_done}/{state.num_steps}", bar, left)
    if state.losses:
        losses = Text(sparkline(state.losses), style="yellow")
        table.add_row("loss", f"{state.losses[-1]:.3f}", losses)
        return table
    if state.reward is not None:
        rewards = Text(sparkline(state.rewards), style="green")
        table.add_row("reward", f"{state.reward:.3f}", rewards)
    if state.response_length is not None:
        lengths = Text(sparkline(state.lengths), style="cyan")
        table.add_row("length", f"{state.response_length:.1f} tokens", lengths)
    if state.accuracy is not None:
        table.add_row("accuracy", f"{state.accuracy:.3f}")
    table.add_row("policy lag", f"{state.lag_max} (bound {state.max_policy_lag})")
    table.add_row("sampling", f"{state.tokens_per_second:,.0f} tokens/s")
    idle = "  ".join(f"{role} {ratio:.0%}" for role, ratio in state.idle_ratios.items())
    table.add_row("idle", Text(idle or "not known yet"))
    return table


def _process_states(state: ProgressState) -> Text:
    text = Text()
    for name, value in state.process_states.items():
        text.append(f"{name} {value}  ", style="green" if value == "ready" else "yellow")
    return text
