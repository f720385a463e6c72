"""Executions side by side, for asynchronous callers."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from actors.verification.sandbox.execution import LauncherDiedError
from actors.verification.sandbox.launcher import Launcher
from actors.verification.sandbox.limits import BoxJob, BoxLimits, BoxResult, Tier
from actors.verification.sandbox.self_test import TierReport, choose_tier
from common.errors import FatalError

_ATTEMPTS = 2


class Sandbox:
    """``num_boxes`` warm launchers; ``async with`` tests the machine and starts them.

    Entering raises :class:`FatalError` when no tier holds here and ``unsafe_no_sandbox`` was not
    asked for. :meth:`run` may be called from any number of tasks.
    """

    def __init__(
        self,
        limits: BoxLimits,
        num_boxes: int,
        *,
        unsafe_no_sandbox: bool = False,
        interpreter: str = "",
        tier: Tier | None = None,
    ) -> None:
        """``tier`` skips the self-test: for tests of one tier."""
        self.limits = limits
        self._num_boxes = num_boxes
        self._unsafe = unsafe_no_sandbox
        self._interpreter = interpreter
        self._tier = tier
        self._report: TierReport | None = None
        self._launchers: list[Launcher] = []
        self._idle: asyncio.LifoQueue[Launcher] = asyncio.LifoQueue()
        # Its threads live until the end: a launcher dies with the thread that started it.
        self._threads = ThreadPoolExecutor(num_boxes, thread_name_prefix="sandbox")

    @property
    def report(self) -> TierReport:
        """What the self-test found; raises ``RuntimeError`` before the start."""
        if self._report is None:
            raise RuntimeError("the sandbox has not been started")
        return self._report

    @property
    def num_restarts(self) -> int:
        """Launchers that were replaced."""
        return sum(max(0, launcher.num_starts - 1) for launcher in self._launchers)

    @property
    def pids(self) -> list[int]:
        """Process ids of the launchers that run now."""
        return [launcher.pid for launcher in self._launchers if launcher.pid is not None]

    @property
    def limits_memory_of_all(self) -> bool:
        """True where the processes of an execution share one memory limit."""
        return all(launcher.limits_memory_of_all for launcher in self._launchers)

    @property
    def counts_processor_time_of_all(self) -> bool:
        """True where no process of an execution can hide its processor time."""
        return all(launcher.counts_cpu_of_all for launcher in self._launchers)

    async def __aenter__(self) -> Sandbox:
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    async def run(self, job: BoxJob, limits: BoxLimits | None = None) -> BoxResult:
        """Execute ``job`` in a pristine box as soon as one is free.

        Raises :class:`LauncherDiedError` when two launchers in a row died of it.
        """
        launcher = await self._idle.get()
        cancelled = threading.Event()
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, _run, launcher, job, limits, cancelled)
        try:
            return await asyncio.shield(work)
        finally:
            cancelled.set()
            if not work.done():
                await asyncio.wait({work})
            self._idle.put_nowait(launcher)

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._tier is not None:
            self._report = TierReport(self._tier)
        else:
            self._report = await loop.run_in_executor(self._threads, self._choose)
        for _ in range(self._num_boxes):
            launcher = Launcher(self._report.tier, self.limits, self._interpreter)
            self._launchers.append(launcher)
            await loop.run_in_executor(self._threads, launcher.start)
            self._idle.put_nowait(launcher)

    def _choose(self) -> TierReport:
        return choose_tier(
            self.limits, unsafe_no_sandbox=self._unsafe, interpreter=self._interpreter
        )

    async def _close(self) -> None:
        loop = asyncio.get_running_loop()
        for launcher in self._launchers:
            await loop.run_in_executor(self._threads, launcher.close)
        self._threads.shutdown()


def _run(
    launcher: Launcher, job: BoxJob, limits: BoxLimits | None, cancelled: threading.Event
) -> BoxResult:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return launcher.run(job, limits=limits, is_cancelled=cancelled.is_set)
        except FatalError as error:
            raise LauncherDiedError(str(error)) from None
        except LauncherDiedError:
            if attempt == _ATTEMPTS:
                raise
    raise LauncherDiedError("no attempt was made")
