"""A process of a benchmark that takes its orders, and answers, in lines of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from common.errors import FatalError


class LineProcess:
    """``python -m MODULE KIND ...``, until :meth:`close`."""

    def __init__(self, module: str, kind: str, *arguments: str) -> None:
        self._kind = kind
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, kind, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, order: Mapping[str, object]) -> None:
        """Give an order."""
        if self._process.stdin is None:
            raise FatalError("a process of a benchmark has a standard input")
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Its next line; raises :class:`FatalError` when it ended instead."""
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise FatalError(f"the {self._kind} process of the benchmark ended early")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
