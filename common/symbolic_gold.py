"""Can a gold answer be worked out? Asked when tasks are loaded, of a limited, killable process.

The process is started by the first gold answer that needs it, ends when nothing was asked for
:data:`IDLE_S`, with its parent, or when an answer takes too long; the next one starts another.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import threading
from functools import lru_cache

from common.errors import DataError
from common.math_answer.limits import AnswerError

READ_LIMIT_S = 10.0
START_LIMIT_S = 60.0
IDLE_S = 20.0

_MEMORY_BYTES = 2 << 30
_CHILD_ENV = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}


def check_symbolic_gold(text: str) -> None:
    """Raise :class:`DataError` unless math-verify reads ``text`` and sympy works it out in time."""
    reason = _reason(text)
    if reason:
        raise DataError(
            f"malformed task: gold must be an answer that can be compared, got {text[:80]!r}: "
            f"{reason}"
        )


@lru_cache(1 << 16)
def _reason(text: str) -> str:
    return _reader.ask(text)


class _Reader:
    """One process at a time, asked one gold answer at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, text: str) -> str:
        """Why ``text`` cannot be read, empty if it can."""
        with self._lock:
            for _ in range(2):  # a process that was idle for too long has ended
                process = self._process or self._start()
                answer = None if process is None else self._exchange(process, text)
                if answer is not None:
                    return answer
            return "the process that reads it ended"

    def _start(self) -> subprocess.Popen[bytes] | None:
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "common.symbolic_gold"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_CHILD_ENV,
            cwd="/",
        )
        self._process = process
        return process if self._line(process, START_LIMIT_S) else None

    def _exchange(self, process: subprocess.Popen[bytes], text: str) -> str | None:
        """None when the process has ended."""
        if process.stdin is None:
            return None
        try:
            process.stdin.write(json.dumps(text).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            self._end(process)
            return None
        line = self._line(process, READ_LIMIT_S)
        if line is None:
            return f"working it out takes more than {READ_LIMIT_S:g} s"
        return str(json.loads(line)) if line else None

    def _line(self, process: subprocess.Popen[bytes], limit_s: float) -> bytes | None:
        """The next line; empty when the process has ended, None when it had to be."""
        if process.stdout is None:
            return b""
        ready, _, _ = select.select([process.stdout], [], [], limit_s)
        line = process.stdout.readline() if ready else None
        if not line:
            self._end(process)
        return line

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.communicate()
        self._process = None


_reader = _Reader()


def main() -> None:
    """Answer one JSON string a line with the reason against it, until nothing is asked."""
    from common.lifecycle import die_with_parent

    die_with_parent()
    from common.math_answer.symbolic import read_symbolic

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    read_symbolic("2")  # imports what it needs
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    answers.write(b"ready\n")
    while select.select([0], [], [], IDLE_S)[0] and (line := sys.stdin.buffer.readline()):
        answers.write(json.dumps(_reason_against(json.loads(line))).encode() + b"\n")


def _reason_against(text: str) -> str:
    from common.math_answer.symbolic import read_symbolic

    try:
        read_symbolic(text).doit()
    except AnswerError as error:
        return str(error)
    except MemoryError:
        return f"working it out takes more than {_MEMORY_BYTES >> 20} MiB"
    except Exception as error:  # of any kind: an answer could not be compared with it either
        return f"sympy cannot work it out: {type(error).__name__}"
    return ""


if __name__ == "__main__":
    main()
