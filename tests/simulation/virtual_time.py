"""An asyncio event loop whose time is a number: waiting costs nothing and order is repeatable.

Callbacks run in the order in which they were scheduled, timers by their time; when nothing is ready
the clock jumps to the next timer. Work for threads runs on the loop itself after a delay, so two
runs with the same seed take the same steps whatever the machine is doing. asyncio keeps tasks in
sets and cancels them in the order of those; tasks hash by number here, not by where they lie in
memory.
"""

from __future__ import annotations

import asyncio
import asyncio.base_events
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

THREAD_S = 0.0004
"""How long a call in an executor takes: about one fdatasync."""

_T = TypeVar("_T")


class StuckError(AssertionError):
    """Every task waits and no timer is left: nothing could ever happen again."""


class _NoFiles:
    """Stands where the loop expects a selector: no file is ever ready, waiting moves the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        """Move the clock instead of waiting."""
        if timeout is None:
            raise StuckError("no task can run and no timer is set")
        self._loop.now_s += timeout
        return []


class NumberedTask(asyncio.Task[Any]):
    """A task whose place in a set depends on the tasks before it only."""

    def __init__(self, number: int, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        self._number = number  # its making puts it into a set already
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.base_events.BaseEventLoop):
    """The loop; :attr:`now_s` is its monotonic clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._clock_resolution = 1e-6
        self._selector = _NoFiles(self)
        self._numbers = itertools.count(1)
        self.set_task_factory(self._numbered_task)

    def _numbered_task(
        self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any
    ) -> NumberedTask:
        return NumberedTask(next(self._numbers), coro, loop=loop, **options)

    def take(self, seconds: float) -> None:
        """Time passes while a callback runs and nothing else can."""
        self.now_s += seconds

    def time(self) -> float:
        """Virtual monotonic seconds."""
        return self.now_s

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., _T], *args: Any
    ) -> asyncio.Future[_T]:
        """Call ``func`` on this loop, a moment later."""
        future: asyncio.Future[_T] = self.create_future()
        self.call_later(THREAD_S, _call_into, future, func, args)
        return future

    def add_reader(  # type: ignore[override]
        self, fd: Any, callback: Callable[..., Any], *args: Any
    ) -> None:
        """Call back when a simulated socket has input."""
        fd.on_readable = lambda: self.call_soon(callback, *args)

    def remove_reader(self, fd: Any) -> bool:
        """Stop calling back."""
        fd.on_readable = None
        return True

    def _process_events(self, event_list: list[Any]) -> None:
        """No file is ever ready."""

    def _write_to_self(self) -> None:
        """No other thread has anything to say."""


class VirtualClock:
    """The loop's time as the broker's :class:`common.clock.Clock`."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now_s(self) -> float:
        """Virtual monotonic seconds."""
        return self._loop.now_s


def _call_into(future: asyncio.Future[_T], func: Callable[..., _T], args: tuple[Any, ...]) -> None:
    if future.cancelled():
        return
    try:
        future.set_result(func(*args))
    except BaseException as error:
        future.set_exception(error)
