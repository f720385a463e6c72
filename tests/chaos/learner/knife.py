"""A learner rank that kills itself at a numbered operation: before it, half-way or after it.

Counted over one life are the moves between which a death matters: an optimizer step, everything
that makes a file durable or gives it its name, a word to the broker or to the other ranks, a
publish.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

How = Literal["before", "half", "after"]
WAYS: tuple[How, ...] = ("before", "half", "after")


@dataclass(frozen=True)
class Cut:
    """Die on ``rank`` at operation ``number`` (from 1)."""

    rank: int
    number: int
    how: How


def arm(cut: Cut) -> None:
    """Count the operations of this process from here on and die at ``cut.number``."""
    from learner.checkpoints import checkpoint_writer
    from learner.step.update import Updater
    from tests.chaos.learner.rank import FilePublisher
    from tests.chaos.learner.remote_broker import RemoteBroker

    counter = _Counter(cut)
    for module, name in (
        (os, "fsync"),
        (os, "replace"),
        (os, "rename"),
        (os, "mkdir"),
        (shutil, "rmtree"),
        (Updater, "apply"),
        (RemoteBroker, "request"),
        (FilePublisher, "publish"),
    ):
        setattr(module, name, counter.around(getattr(module, name)))
    write = counter.around(checkpoint_writer.__dict__["write_tensors"], half=_write_half)
    setattr(checkpoint_writer, "write_tensors", write)  # noqa: B010


def _write_half(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """The file that a dying rank had half written."""
    from learner.checkpoints.checkpoint_tensors import write_tensors

    write_tensors(path, tensors)
    os.truncate(path, path.stat().st_size // 2)


class _Counter:
    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._number = 0
        self._lock = threading.Lock()

    def around(
        self, operation: Callable[..., Any], half: Callable[..., Any] | None = None
    ) -> Callable[..., Any]:
        """``operation`` with death before, in or after it at the chosen number."""

        def counted(*args: Any, **named: Any) -> Any:
            with self._lock:
                self._number += 1
                is_last = self._number == self._cut.number
            if not is_last:
                return operation(*args, **named)
            try:
                if self._cut.how == "half" and half is not None:
                    half(*args, **named)
                elif self._cut.how == "after":
                    operation(*args, **named)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)

        return counted
