"""B18: programs judged a second in a sandbox, against a cold ``python`` process for each.

Both run the same programs on the same inputs, two at a time. The baseline is what graders of code
commonly do: write the program to a file and run ``python FILE`` on it, with no isolation whatever;
ours has all of it. The gate is on a trivial program, where nothing but the way of running counts.
Printed beside it: the same against ``python -I -c``, which starts with less; and for a program with
the imports that the grader of LiveCodeBench puts before each, which a warm interpreter has made. A
further gate says what isolation costs a program that computes for 20 ms: executions a second over
what the cores could do if only the program cost time.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from common.errors import FatalError
from deploy.bench.result import BenchResult, hardware_name, spread, versions

NUM_WORKERS = 2
NUM_WARM, NUM_COLD, NUM_WORKING = 200, 20, 100
REPEATS = 5
MIN_OVER_COLD = 5.0
MIN_OF_PROGRAM = 0.5
_TRIVIAL = "print(int(input()) + 1)"
_PRELUDE = (
    "import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics\n"
    "import itertools, functools, operator, io, sys, json, typing\n"
)
"""Of LiveCodeBench (lcb_runner/evaluation/testing_util.py), as far as it is modules."""
_WORKING = """
import time
end = time.process_time() + 0.02
while time.process_time() < end: pass
print(int(input()) + 1)
"""
_WORKING_S = 0.02
_PATIENCE_S = 120.0


def bench_code() -> BenchResult:
    """Measure; the ratio is executions a second over those of cold processes."""
    seconds = _measure()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    over_cold = medians["cold"] / medians["warm"]
    of_program = _WORKING_S / NUM_WORKERS / medians["working"]
    return BenchResult(
        name="code",
        ratio=over_cold,
        goal=f">= {MIN_OVER_COLD:g}x cold, >= {MIN_OF_PROGRAM:g} of the program's own time",
        passed=over_cold >= MIN_OVER_COLD and of_program >= MIN_OF_PROGRAM,
        baseline="a process `python FILE` for each execution, without isolation",
        hardware=hardware_name(),
        details={
            "executions_per_s": 1 / medians["warm"],
            "cold_executions_per_s": 1 / medians["cold"],
            "over_isolated_cold": medians["isolated_cold"] / medians["warm"],
            "over_cold_with_imports": medians["importing_cold"] / medians["importing"],
            "of_program_time_at_20_ms": of_program,
            "num_workers": NUM_WORKERS,
            **{name: spread(values) for name, values in seconds.items()},
            "versions": versions(),
        },
    )


def _measure() -> dict[str, list[float]]:
    """Seconds of one execution, ``REPEATS`` times each, by turns."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder, _Judge() as judge:
        trivial, importing = Path(folder, "trivial.py"), Path(folder, "importing.py")
        trivial.write_text(_TRIVIAL, encoding="ascii")
        importing.write_text(_PRELUDE + _TRIVIAL, encoding="ascii")
        judge.judge(_TRIVIAL, 2 * NUM_WORKERS)
        ways: dict[str, tuple[Callable[[int], float], int]] = {
            "warm": (partial(judge.judge, _TRIVIAL), NUM_WARM),
            "cold": (partial(_run_cold, [str(trivial)]), NUM_COLD),
            "isolated_cold": (partial(_run_cold, ["-I", "-c", _TRIVIAL]), NUM_COLD),
            "importing": (partial(judge.judge, _PRELUDE + _TRIVIAL), NUM_WARM),
            "importing_cold": (partial(_run_cold, [str(importing)]), NUM_COLD),
            "working": (partial(judge.judge, _WORKING), NUM_WORKING),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(REPEATS):
            for name, (run, count) in ways.items():
                seconds[name].append(run(count) / count)
        return seconds


class _Judge:
    """A ``headrace verify --kind code`` process that answers line by line."""

    def __enter__(self) -> _Judge:
        command = ["verify", "--kind", "code", "--workers", str(NUM_WORKERS)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "common.cli", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=_PATIENCE_S)  # the end of its input ends it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def judge(self, program: str, count: int) -> float:
        """Seconds for ``count`` right programs of one test; raises when one is not right."""
        if self._process.stdin is None or self._process.stdout is None:
            raise FatalError("the judge has pipes")
        lines = [_line(program, number) for number in range(count)]
        started_s = time.perf_counter()
        with ThreadPoolExecutor(1) as writer:
            writer.submit(self._write, b"".join(lines))
            answers = [json.loads(self._process.stdout.readline() or b"{}") for _ in lines]
        seconds = time.perf_counter() - started_s
        if any(answer.get("reward") != 1.0 for answer in answers):
            raise FatalError(f"headrace bench code: a right program was not passed: {answers[0]}")
        return seconds

    def _write(self, data: bytes) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(data)
            self._process.stdin.flush()


def _line(program: str, number: int) -> bytes:
    tests = [{"input": f"{number}\n", "output": f"{number + 1}\n"}]
    fields = {"id": number, "completion": f"```python\n{program}\n```", "tests": tests}
    return json.dumps(fields).encode() + b"\n"


def _run_cold(arguments: list[str], count: int) -> float:
    started_s = time.perf_counter()
    with ThreadPoolExecutor(NUM_WORKERS) as threads:
        if not all(threads.map(partial(_run_one_cold, arguments), range(count))):
            raise FatalError("headrace bench code: a right program failed in a cold process")
    return time.perf_counter() - started_s


def _run_one_cold(arguments: list[str], number: int) -> bool:
    done = subprocess.run(
        [sys.executable, *arguments],
        input=f"{number}\n".encode(),
        capture_output=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    return done.stdout == f"{number + 1}\n".encode()
