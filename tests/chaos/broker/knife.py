"""A broker that kills itself at a numbered operation: before it, after it, or half-way through.

Operations are counted over one life: everything that the journal does to files and every reply
that leaves. Killing at each number in turn visits every window between a decision, its record on
disk and the acknowledgement.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from common.codec import Buffer

How = Literal["before", "after", "half"]


@dataclass(frozen=True)
class Cut:
    """Die at operation ``number`` (from 1)."""

    number: int
    how: How


_FILE_OPERATIONS = ("create", "allocate", "truncate", "fdatasync", "fsync_directory", "unlink")


def arm(cut: Cut) -> None:
    """Count the operations of this process from here on and die at ``cut.number``."""
    from broker.journal.files import OsFiles
    from common.broker_socket import BrokerSocket

    counter = _Counter(cut)
    for name in _FILE_OPERATIONS:
        setattr(OsFiles, name, counter.around(getattr(OsFiles, name)))
    write = counter.around(OsFiles.pwritev, half=_write_half)
    setattr(OsFiles, "pwritev", write)  # noqa: B010  (mypy: a method cannot be assigned)
    setattr(BrokerSocket, "send", counter.around(BrokerSocket.send))  # noqa: B010


def _write_half(files: Any, descriptor: int, buffers: Sequence[Buffer], offset: int) -> None:
    """The write that a dying process had half done."""
    whole = b"".join(buffers)
    os.pwrite(descriptor, whole[: len(whole) // 2], offset)


class _Counter:
    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._number = 0

    def around(
        self, operation: Callable[..., Any], half: Callable[..., Any] | None = None
    ) -> Callable[..., Any]:
        """``operation`` with death before, in or after it at the chosen number."""

        def counted(*args: Any, **named: Any) -> Any:
            self._number += 1
            if self._number != self._cut.number:
                return operation(*args, **named)
            if self._cut.how == "half" and half is not None:
                half(*args, **named)
            elif self._cut.how == "after":
                operation(*args, **named)
            os.kill(os.getpid(), signal.SIGKILL)
            return None

        return counted
