"""The line protocol with a process that has imported everything and forks what a trial needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


class ZygotePipe:
    """A module that reads a request a line, as JSON, and answers with lines."""

    def __init__(
        self, module: str, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )

    def ask(self, request: Mapping[str, object]) -> str:
        """Send one line; returns the one that answers it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> str:
        """The next line; raises ``RuntimeError`` when the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the zygote ended")
        return line

    def close(self) -> None:
        """End the process, if it was not; what it forked dies with it."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.communicate()
