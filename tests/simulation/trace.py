"""What happened in a simulated world: a running hash of everything and the last lines of it."""

from __future__ import annotations

import re
import zlib
from collections import Counter, deque
from collections.abc import Callable, Sequence

from common.codec import decode
from common.errors import DecodeError

_KEPT_LINES = 6000
_LINE_CHARACTERS = 240


class Violation(AssertionError):
    """A promise was broken; ``group_id`` is the group that it was broken for, if it was one."""

    def __init__(self, promise: str, text: str, group_id: int | None = None) -> None:
        super().__init__(f"{promise}: {text}")
        self.promise = promise
        self.group_id = group_id


class Trace:
    """Every step of a world in order; two worlds with the same hash took the same steps."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._kept: deque[tuple[float, str, Sequence[bytes]]] = deque(maxlen=_KEPT_LINES)
        self.num_steps = 0
        self.num_faults: Counter[str] = Counter()
        self.hash = 0

    def step(self, line: str, message: Sequence[bytes] = ()) -> None:
        """One step: a message delivered or lost, a process or a disk that did something."""
        self.num_steps += 1
        now_s = self._now_s()
        self.hash = zlib.crc32(f"{now_s:.6f} {line}".encode(), self.hash)
        for part in message:
            self.hash = zlib.crc32(part, self.hash)
        self._kept.append((now_s, line, message))

    def fault(self, kind: str, detail: str = "") -> None:
        """One injected fault."""
        self.num_faults[kind] += 1
        self.step(f"FAULT {kind} {detail}".rstrip())

    def tail(self, group_id: int | None = None, num_lines: int = 60) -> list[str]:
        """The last lines; with ``group_id`` only faults and what was said about that group."""
        lines = [f"{at_s:12.6f} {line} {_spoken(message)}" for at_s, line, message in self._kept]
        if group_id is not None:
            pattern = re.compile(rf"FAULT|group_id={group_id}\b|group_ids=\([^)]*\b{group_id}\b")
            lines = [line for line in lines if pattern.search(line)]
        return [line[:_LINE_CHARACTERS] for line in lines[-num_lines:]]


def _spoken(message: Sequence[bytes]) -> str:
    if not message:
        return ""
    try:
        decoded = decode(message)
    except DecodeError as error:
        return str(error)
    return f"#{decoded.request_id} {decoded.message}"
