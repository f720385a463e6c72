"""What ``headrace verify`` tells a person on stderr: progress, and a summary at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from common.types import Verdict, VerdictStatus


class Tally:
    """Counts answers; pure but for the clock that it is given."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_s = clock()
        self._statuses: Counter[str] = Counter()
        self._reward = 0.0
        self._num_judged = 0

    @property
    def num_lines(self) -> int:
        """Lines answered."""
        return sum(self._statuses.values())

    def add(self, verdict: Verdict) -> None:
        """Count one answer."""
        self._statuses[verdict.status.value] += 1
        if verdict.reward is not None:
            self._reward += verdict.reward
            self._num_judged += 1

    def mean_reward(self) -> float | None:
        """Mean over the answers that were judged, None without one."""
        return self._reward / self._num_judged if self._num_judged else None

    def summary(self, num_restarts: int) -> str:
        """Counts by status, mean reward, speed and processes replaced, on one line."""
        seconds = max(self._clock() - self._started_s, 1e-9)
        mean = self.mean_reward()
        counts = ", ".join(
            f"{status.value} {self._statuses[status.value]}"
            for status in VerdictStatus
            if self._statuses[status.value]
        )
        reward = "none judged" if mean is None else f"mean reward {mean:.4f} of {self._num_judged}"
        return (
            f"headrace verify: {self.num_lines} lines in {seconds:.1f} s "
            f"({self.num_lines / seconds:.0f}/s): {counts or 'nothing to do'}; {reward}; "
            f"{num_restarts} processes replaced"
        )


class ProgressBar:
    """A bar on stderr: of bytes where their number is known, else of lines answered."""

    def __init__(self, total_bytes: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("verify", total=total_bytes, told="")

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, num_bytes: int, tally: Tally) -> None:
        """Say how far it is: bytes read, lines answered, mean reward."""
        mean = tally.mean_reward()
        told = f"{tally.num_lines} lines" + ("" if mean is None else f", mean reward {mean:.3f}")
        self._progress.update(self._task, completed=num_bytes, told=told)
