"""Starts the processes of one run on this machine, restarts what dies and stops all together.

The decisions are in ``deploy.restart_policy``; this shell starts, waits and signals. Children are
started from the main thread and die with it, also when it is killed with -9.
"""

from __future__ import annotations

import fcntl
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from common.clock import Clock, MonotonicClock
from common.config import RunPaths
from common.errors import EXIT_FATAL, EXIT_INTERRUPTED, EXIT_OK, FatalError
from common.files import append_line
from deploy.child_process import ChildProcess, ProcessSpec
from deploy.log_tail import last_error_line, read_tail, torchrun_exit_code
from deploy.restart_policy import (
    FinishRun,
    ProcessExit,
    Restart,
    RestartPolicy,
    StopRun,
    decide,
    describe_exit,
)

POLL_S = 0.1
TERM_BUDGET_S = 6.5
"""Time for every role but the broker to end after SIGTERM, unless its ``stop_s`` is longer."""
FINISHED_BUDGET_S = 2.0
"""The same once the run is finished: everything is durable, nobody has anything left to save."""
BROKER_BUDGET_S = 1.5
"""Time for the broker, which ends last because the others still speak to it."""


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended, with one line for a person when it did not finish."""

    exit_code: int
    reason: str = ""


class StopRequest:
    """Set by SIGINT and SIGTERM; a second signal asks to skip the polite part."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.num_signals = 0

    def signal(self) -> None:
        """Count one request to stop."""
        self.num_signals += 1
        self._event.set()

    @property
    def is_set(self) -> bool:
        """True once a stop was asked for."""
        return self._event.is_set()

    @property
    def is_urgent(self) -> bool:
        """True once it was asked for twice."""
        return self.num_signals > 1

    def wait(self, timeout_s: float) -> None:
        """Return after ``timeout_s``, earlier when a stop is asked for."""
        self._event.wait(timeout_s)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGHUP into a :class:`StopRequest` inside the block."""
    request = StopRequest()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        request.signal()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def run_lock(paths: RunPaths) -> Iterator[None]:
    """Hold the run directory; raises :class:`FatalError` when another supervisor does."""
    paths.root.mkdir(parents=True, exist_ok=True)
    with open(paths.root / ".supervisor.lock", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FatalError(
                f"{paths.root} is in use by another supervisor "
                "(wait for it, stop it, or set another run.directory)"
            ) from None
        yield


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class _Member:
    """One supervised process with its history; ``child`` is None between two lives."""

    spec: ProcessSpec
    child: ChildProcess | None = None
    exits: list[ProcessExit] = field(default_factory=list)
    was_ready: bool = False
    start_at_s: float = 0.0


class Supervisor:
    """Runs ``specs`` until the consumer is done, one fails for good or a stop is asked for."""

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        paths: RunPaths,
        *,
        policy: RestartPolicy | None = None,
        clock: Clock | None = None,
        on_tick: Callable[[], None] = lambda: None,
        on_finished: Callable[[], None] = lambda: None,
    ) -> None:
        self._members = [_Member(spec) for spec in specs]
        self._paths = paths
        self._policy = policy or RestartPolicy()
        self._clock = clock or MonotonicClock()
        self._on_tick = on_tick
        self._on_finished = on_finished
        self.num_restarts = 0

    def run(self, stop: StopRequest) -> RunOutcome:
        """Supervise until the end; every process is gone when this returns or raises."""
        self._paths.ready.mkdir(parents=True, exist_ok=True)
        for stale in self._paths.ready.glob("*.json"):
            stale.unlink()
        is_finished = False
        try:
            outcome = self._watch(stop)
            if outcome.exit_code == EXIT_OK:
                is_finished = True
                self._on_finished()
            return outcome
        finally:
            self._stop_all(stop, is_finished)

    def _watch(self, stop: StopRequest) -> RunOutcome:
        while not stop.is_set:
            for member in self._members:
                outcome = self._advance(member)
                if outcome is not None:
                    return outcome
            self._on_tick()
            stop.wait(POLL_S)
        return RunOutcome(EXIT_INTERRUPTED, "interrupted")

    def _advance(self, member: _Member) -> RunOutcome | None:
        """Start, look after or bury one process; an outcome ends the run."""
        if member.child is None:
            if self._clock.now_s() >= member.start_at_s:
                self._start(member)
            return None
        member.was_ready = member.was_ready or self._is_ready(member.spec.name)
        exit_code = member.child.poll()
        return None if exit_code is None else self._bury(member, exit_code)

    def _start(self, member: _Member) -> None:
        spec = member.spec
        (self._paths.ready / f"{spec.name}.json").unlink(missing_ok=True)
        member.was_ready = False
        member.child = ChildProcess(spec.argv, log_file=self._log_file(spec), env=spec.env)
        self._record("started", spec.name, pid=member.child.pid)

    def _bury(self, member: _Member, exit_code: int) -> RunOutcome | None:
        spec = member.spec
        member.child = None
        tail = read_tail(self._log_file(spec))
        if spec.runs_under_torchrun and exit_code == EXIT_FATAL:
            exit_code = torchrun_exit_code(tail) or exit_code
        member.exits.append(ProcessExit(self._clock.now_s(), exit_code, member.was_ready))
        self._record("ended", spec.name, how=describe_exit(exit_code))
        match decide(self._policy, spec.name, member.exits, is_consumer=spec.is_consumer):
            case FinishRun():
                return RunOutcome(EXIT_OK)
            case StopRun(reason):
                return RunOutcome(EXIT_FATAL, self._with_last_words(reason, spec, tail))
            case Restart(delay_s):
                member.start_at_s = self._clock.now_s() + delay_s
                self.num_restarts += 1
        return None

    def _with_last_words(self, reason: str, spec: ProcessSpec, tail: str) -> str:
        log_file = self._log_file(spec)
        return f"{reason}: {last_error_line(tail) or 'it said nothing'} (log: {log_file})"

    def _stop_all(self, stop: StopRequest, is_finished: bool) -> None:
        """SIGTERM to all but the broker, then to the broker, then SIGKILL to what is left."""
        others = [member for member in self._members if member.spec.role != "broker"]
        brokers = [member for member in self._members if member.spec.role == "broker"]

        def budget_s(member: _Member) -> float:
            return FINISHED_BUDGET_S if is_finished else max(TERM_BUDGET_S, member.spec.stop_s)

        try:
            self._terminate(others, budget_s, stop)
            self._terminate(brokers, lambda _: BROKER_BUDGET_S, stop)
        finally:
            for member in self._members:
                if member.child is not None:
                    member.child.kill()

    def _terminate(
        self,
        members: Sequence[_Member],
        budget_s: Callable[[_Member], float],
        stop: StopRequest,
    ) -> None:
        """Let each of ``members`` end by itself within its own budget."""
        living = [member for member in members if member.child is not None]
        for member in living:
            self._child(member).terminate()
        begin_s = self._clock.now_s()
        pause = threading.Event()
        while living and not stop.is_urgent:
            pause.wait(POLL_S / 2)
            for member in list(living):
                is_over = self._clock.now_s() >= begin_s + budget_s(member)
                if self._child(member).poll() is not None or is_over:
                    living.remove(member)
                    self._child(member).kill()  # changes nothing where it has ended
                    self._record_stop(member, begin_s)
        for member in living:
            self._child(member).kill()
            self._record_stop(member, begin_s)

    def _record_stop(self, member: _Member, begin_s: float) -> None:
        exit_code = self._child(member).poll()
        how = describe_exit(exit_code) if exit_code is not None else "unknown"
        after_s = round(self._clock.now_s() - begin_s, 2)
        self._record("stopped", member.spec.name, how=how, after_s=after_s)
        member.child = None

    @staticmethod
    def _child(member: _Member) -> ChildProcess:
        if member.child is None:
            raise ValueError(f"{member.spec.name} does not run")
        return member.child

    def _is_ready(self, name: str) -> bool:
        try:
            record = json.loads((self._paths.ready / f"{name}.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return False
        return bool(record.get("state") == "ready")

    def _log_file(self, spec: ProcessSpec) -> Path:
        return self._paths.logs / f"{spec.name}.log"

    def _record(self, event: str, name: str, **details: object) -> None:
        self._paths.telemetry.mkdir(parents=True, exist_ok=True)
        line = {"time": time.time(), "event": event, "name": name, **details}
        append_line(self._paths.telemetry / "supervisor.jsonl", json.dumps(line))
