"""The life of one process: named start, signals, health pages, deadline for the end, exit code.

Every child dies with its parent: the kernel sends SIGKILL to a process whose parent is gone, also
when the parent was killed with -9 and could tell nobody.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import structlog

from common.config import Config, RunPaths
from common.config_loader import run_paths
from common.errors import (
    EXIT_FATAL,
    EXIT_INFRA,
    EXIT_INTERRUPTED,
    EXIT_OK,
    FatalError,
    HeadraceError,
    InfraError,
)
from common.files import write_atomically
from common.health import HealthServer
from common.logs import configure_logs
from common.metrics import Metrics
from common.protection import plaintext_warning

_PR_SET_PDEATHSIG = 1
SHUTDOWN_BUDGET_S = 8.0
"""A stopping process that is not done by then is ended by its own watchdog."""


class StopFlag:
    """Set once, by a signal or by the program; readable from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._callbacks: list[Callable[[], None]] = []
        self.reason = ""

    def set(self, reason: str) -> None:
        """Ask the process to stop; a second call only starts the callbacks again."""
        self.reason = self.reason or reason
        self._event.set()
        for callback in list(self._callbacks):
            callback()

    def is_set(self) -> bool:
        """True once a stop was asked for."""
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait up to ``timeout_s``; True if a stop was asked for."""
        return self._event.wait(timeout_s)

    def on_set(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when a stop is asked for, at once if it was already."""
        self._callbacks.append(callback)
        if self.is_set():
            callback()


class Process:
    """What every role is given: its configuration, names, metrics, log and stop flag."""

    def __init__(self, role: str, name: str, config: Config, *, metrics_port: int) -> None:
        self.config = config
        self.paths: RunPaths = run_paths(config)
        self.role = role
        self.name = name
        self.metrics = Metrics()
        self.log: structlog.stdlib.BoundLogger = configure_logs(config.run.id, role, name)
        self.stop = StopFlag()
        self._is_ready = False
        self.health = HealthServer(metrics_port, self.metrics, lambda: self._is_ready)
        self.metrics.set("headrace_up_info", 1, role=role)
        warning = plaintext_warning(config)
        if warning is not None:
            self.log.warning(warning)
        self._write_state("starting")

    def ready(self, **info: object) -> None:
        """Say that this process serves: /readyz, the process file and one log line."""
        self._is_ready = True
        self._write_state("ready")
        self.log.info("READY", metrics_port=self.health.port, **info)

    def pause(self, reason: str) -> None:
        """Say that this process lives and does not serve until somebody has looked at it."""
        self._is_ready = False
        self._write_state("paused")
        self.log.error("PAUSED", reason=reason)

    async def wait_stopped(self) -> None:
        """Return when a stop was asked for."""
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(stopped.set)

        self.stop.on_set(wake)
        await stopped.wait()

    def close(self) -> None:
        """Withdraw the process file and the health pages."""
        self._is_ready = False
        (self.paths.ready / f"{self.name}.json").unlink(missing_ok=True)
        self.health.close()

    def _write_state(self, state: str) -> None:
        path = self.paths.ready / f"{self.name}.json"
        record = {
            "role": self.role,
            "name": self.name,
            "pid": os.getpid(),
            "metrics_port": self.health.port,
            "state": state,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(record).encode())
        except OSError as error:
            raise InfraError(
                f"{path}: cannot be written: {error.strerror} (free some space, or set another "
                "run.directory)"
            ) from None


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (Linux; elsewhere nothing)."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before the request took effect
        os._exit(EXIT_INFRA)


@contextmanager
def role_process(role: str, name: str, config: Config, *, metrics_port: int) -> Iterator[Process]:
    """A synchronous role: signals set ``process.stop``, the health pages end with the block."""
    die_with_parent()
    process = Process(role, name, config, metrics_port=metrics_port)

    def on_signal(number: int, _: FrameType | None) -> None:
        process.stop.set(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        yield process
    finally:
        process.close()


def run_async_role(
    role: str,
    name: str,
    config: Config,
    main: Callable[[Process], Awaitable[None]],
    *,
    metrics_port: int,
) -> int:
    """Run ``main`` on uvloop until it returns or a signal stops it; returns the exit code.

    A stop cancels ``main``, which has ``SHUTDOWN_BUDGET_S`` to clean up.
    """
    import uvloop

    die_with_parent()
    with exit_code_for_errors() as outcome:
        process = Process(role, name, config, metrics_port=metrics_port)
        try:
            uvloop.run(_until_stopped(process, main))
        finally:
            process.close()
        if process.stop.reason in ("SIGINT", "SIGTERM"):
            process.log.info("stopped", reason=process.stop.reason)
    return outcome.code


async def _until_stopped(process: Process, main: Callable[[Process], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stop.set, number.name)
    work = asyncio.ensure_future(main(process))
    stopped = asyncio.create_task(process.wait_stopped(), name="wait-stopped")
    try:
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            _arm_watchdog(process)
            work.cancel()
        await asyncio.gather(work, return_exceptions=False)
    except asyncio.CancelledError:
        if not process.stop.is_set():
            raise
    finally:
        stopped.cancel()


def _arm_watchdog(process: Process) -> None:
    """End the process hard when its clean-up overruns the budget."""

    def overrun() -> None:
        process.log.error("shutdown overran its budget", budget_s=SHUTDOWN_BUDGET_S)
        os._exit(EXIT_INTERRUPTED)

    timer = threading.Timer(SHUTDOWN_BUDGET_S, overrun)
    timer.daemon = True
    timer.start()


class Outcome:
    """The exit code that a block of work ended with."""

    def __init__(self) -> None:
        self.code = EXIT_OK


@contextmanager
def exit_code_for_errors() -> Iterator[Outcome]:
    """Turn typed errors into one line on stderr and an exit code.

    Exception groups are unwrapped to the first typed error. Anything untyped is a bug and keeps its
    traceback.
    """
    outcome = Outcome()
    try:
        yield outcome
    except* FatalError as group:
        outcome.code = _report(group, EXIT_FATAL)
    except* HeadraceError as group:
        outcome.code = outcome.code or _report(group, EXIT_INFRA)
    except* KeyboardInterrupt:
        outcome.code = outcome.code or EXIT_INTERRUPTED


def _report(group: BaseExceptionGroup[BaseException], code: int) -> int:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    print(f"headrace: {error}", file=sys.stderr, flush=True)
    return code
