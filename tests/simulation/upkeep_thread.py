"""The journal's upkeep thread on the virtual loop: it stops before and after each disk operation.

The code is the real one and runs in a real thread, but only while the loop waits for it, from one
operation of the disk to the next: when it goes on is drawn from the seed. What happens in between,
the end of the machine included, so finds every state that two threads could leave.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, cast

from broker.journal.files import Files
from broker.journal.log import Log
from common.errors import JournalError
from tests.fake_disk import Killed
from tests.simulation.virtual_time import VirtualLoop

_STEP_S = (0.0, 0.001, 0.01, 0.2)
"""How long the thread may stop between two steps."""


class SteppedJob:
    """A call in a thread of its own that goes on step by step, and only when told to."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.is_done = False
        self.error: BaseException | None = None
        self._work = work
        self._is_killed = False
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="stepped", daemon=True)
        self._thread.start()

    @property
    def is_here(self) -> bool:
        """Whether the caller is this job."""
        return threading.current_thread() is self._thread

    def step(self) -> None:
        """Let it go on to where it next stops, or to its end."""
        if not self.is_done:
            self._go.release()
            self._stopped.acquire()

    def stop_here(self) -> None:
        """The job itself: wait for the next step; raises :class:`Killed` when there is none."""
        self._stopped.release()
        self._go.acquire()
        if self._is_killed:
            raise Killed

    def kill(self) -> None:
        """End it where it stands."""
        self._is_killed = True
        while not self.is_done:
            self.step()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._is_killed:
                self._work()
        except BaseException as error:
            self.error = error
        self.is_done = True
        self._stopped.release()


class VirtualUpkeep:
    """Stands where ``broker.journal.upkeep.Upkeep`` stands."""

    def __init__(
        self,
        loop: VirtualLoop,
        seeded: random.Random,
        *,
        timeless: Callable[[], AbstractContextManager[None]],
        when_stepped: Callable[[], None],
        when_ended: Callable[[BaseException], None],
        log: Log,
    ) -> None:
        """``when_ended`` is called with the error that ended the thread, but for a failed disk."""
        self._loop = loop
        self._random = seeded
        self._timeless = timeless
        self._when_stepped = when_stepped
        self._when_ended = when_ended
        self._log = log
        self._job: SteppedJob | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_wanted = False
        self._is_over = False
        lock = cast("threading.Lock", _SteppedLock(self))
        log._segments.spare.lock = lock

    def look(self) -> None:
        """Have the thread do what there is to do, in its own time."""
        if self._log.is_untidy and not self._is_over:
            self._is_wanted = True
            if self._job is None:
                self._begin()

    def stop(self) -> None:
        """The process ends in order: what is under way is finished first."""
        job = self._end()
        while job is not None and not job.is_done:
            self._go_on(job)
        if job is not None and isinstance(job.error, Killed):
            raise job.error

    def kill(self) -> None:
        """The process is gone, wherever the thread stands."""
        job = self._end()
        if job is not None:
            job.kill()

    def pause(self) -> None:
        """Stop if the caller is this thread."""
        if self._job is not None and self._job.is_here:
            self._job.stop_here()

    def go_on(self) -> None:
        """One step, for those who wait for what the thread holds."""
        if self._job is not None and not self._job.is_here:
            self._go_on(self._job)

    def _begin(self) -> None:
        self._is_wanted = False
        self._job = SteppedJob(self._work)
        self._wait()

    def _work(self) -> None:
        self._log.tidy()
        while self._log.prewrite():
            pass

    def _wait(self) -> None:
        self._timer = self._loop.call_later(self._random.choice(_STEP_S), self._step)

    def _step(self) -> None:
        job = self._job
        assert job is not None
        self._go_on(job)
        if not job.is_done:
            self._wait()
            return
        self._job = None
        if job.error is not None:
            self._is_over = True
            if not isinstance(job.error, JournalError):
                self._when_ended(job.error)
        elif self._is_wanted:
            self._begin()

    def _go_on(self, job: SteppedJob) -> None:
        with self._timeless():  # how long it takes is how long it stops
            job.step()
        self._when_stepped()

    def _end(self) -> SteppedJob | None:
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        return self._job


class SteppedFiles:
    """Files with a pause before and after each operation of the thread; as ``Files`` otherwise."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.pause: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._files, name)

        def stepped(*arguments: Any) -> Any:
            self.pause()
            result = operation(*arguments)
            self.pause()
            return result

        return stepped


class _SteppedLock:
    """A lock that is waited for by letting the thread go on; the loop never holds it for long."""

    def __init__(self, upkeep: VirtualUpkeep) -> None:
        self._upkeep = upkeep
        self._is_held = False

    def __enter__(self) -> None:
        while self._is_held:
            self._upkeep.go_on()
        self._is_held = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_held = False
