"""Runs one stage of the demo as a child process and samples what it takes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.clock import Clock, MonotonicClock
from deploy.child_process import ChildProcess
from deploy.demo_stages import Stage, StageResult
from deploy.restart_policy import ExitKind, classify_exit
from deploy.role_commands import role_environment
from deploy.supervisor import POLL_S, StopRequest
from deploy.telemetry import tree_usage

STOP_BUDGET_S = 9.0
"""A stage stops its own processes in 8 s; then it is killed, and they die with it."""
MAX_ATTEMPTS = 3
"""A stage that is killed so often does not fit this machine."""
_MEMORY_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class StageEnd:
    """How an attempt at a stage ended; ``exit_code`` is None when it was asked to stop."""

    result: StageResult
    exit_code: int | None


def run_stage(
    stage: Stage,
    log_file: Path,
    stop: StopRequest,
    on_tick: Callable[[], None],
    clock: Clock | None = None,
) -> StageEnd:
    """Run ``stage`` to its end, or until ``stop`` is asked for."""
    clock = clock or MonotonicClock()
    begin_s = clock.now_s()
    memory = _MemorySampler(clock)
    child = ChildProcess(stage.argv, log_file=log_file, env=role_environment(1))
    try:
        while (exit_code := child.poll()) is None and not stop.is_set:
            memory.tick()
            on_tick()
            stop.wait(POLL_S)
        if exit_code is None:
            _stop(child, stop, clock)
    finally:
        child.kill()
    result = StageResult(
        seconds=round(clock.now_s() - begin_s, 3),
        peak_rss_bytes=memory.peak_bytes,
        is_done=exit_code == 0,
    )
    return StageEnd(result, exit_code)


def run_stage_to_its_end(
    stage: Stage,
    log_file: Path,
    stop: StopRequest,
    on_tick: Callable[[], None],
    on_begin: Callable[[], None],
    on_end: Callable[[StageEnd], None],
) -> StageEnd:
    """Run ``stage``, and again when it was killed: every stage goes on where it was cut off.

    ``on_begin`` and ``on_end`` hear of each attempt.
    """
    for _ in range(MAX_ATTEMPTS):
        on_begin()
        end = run_stage(stage, log_file, stop, on_tick)
        on_end(end)
        if end.exit_code is None or classify_exit(end.exit_code) is not ExitKind.RETRY:
            break
    return end


class _MemorySampler:
    """Peak of the resident memory of this process and all its descendants."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next_s = clock.now_s()
        self.peak_bytes = 0

    def tick(self) -> None:
        """Sample, at most once a second."""
        if self._clock.now_s() >= self._next_s:
            self._next_s = self._clock.now_s() + _MEMORY_EVERY_S
            self.peak_bytes = max(self.peak_bytes, tree_usage().rss_bytes)


def _stop(child: ChildProcess, stop: StopRequest, clock: Clock) -> None:
    child.terminate()
    deadline_s = clock.now_s() + STOP_BUDGET_S
    pause = threading.Event()
    while child.poll() is None and clock.now_s() < deadline_s and not stop.is_urgent:
        pause.wait(POLL_S)
