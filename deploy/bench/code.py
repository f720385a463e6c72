"""B18: programs judged a second in a sandbox, against a cold ``python`` process for each.

Both run the same programs on the same inputs, two at a time. The baseline has
no isolation whatever; ours has all of it. A second figure says what isolation costs a program that
computes for 20 ms: executions a second over what the cores could do if only the program cost time.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from common.errors import FatalError
from deploy.bench.result import BenchResult, hardware_name, spread, versions

NUM_WORKERS = 2
NUM_WARM, NUM_COLD, NUM_WORKING = 200, 20, 100
REPEATS = 5
MIN_OVER_COLD = 5.0
MIN_OF_PROGRAM = 0.5
_TRIVIAL = "print(int(input()) + 1)"
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
    with _Judge() as judge:
        judge.judge(_TRIVIAL, 2 * NUM_WORKERS)
        warm, cold, working = [], [], []
        for _ in range(REPEATS):
            warm.append(judge.judge(_TRIVIAL, NUM_WARM) / NUM_WARM)
            cold.append(_run_cold(NUM_COLD) / NUM_COLD)
            working.append(judge.judge(_WORKING, NUM_WORKING) / NUM_WORKING)
    over_cold = statistics.median(cold) / statistics.median(warm)
    of_program = _WORKING_S / NUM_WORKERS / statistics.median(working)
    return BenchResult(
        name="code",
        ratio=over_cold,
        goal=f">= {MIN_OVER_COLD:g}x cold, >= {MIN_OF_PROGRAM:g} of the program's own time",
        passed=over_cold >= MIN_OVER_COLD and of_program >= MIN_OF_PROGRAM,
        baseline="a python process for each execution, without isolation",
        hardware=hardware_name(),
        details={
            "executions_per_s": 1 / statistics.median(warm),
            "cold_executions_per_s": 1 / statistics.median(cold),
            "of_program_time_at_20_ms": of_program,
            "num_workers": NUM_WORKERS,
            "warm": spread(warm),
            "cold": spread(cold),
            "working": spread(working),
            "versions": versions(),
        },
    )


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


def _run_cold(count: int) -> float:
    started_s = time.perf_counter()
    with ThreadPoolExecutor(NUM_WORKERS) as threads:
        if not all(threads.map(_run_one_cold, range(count))):
            raise FatalError("headrace bench code: a right program failed in a cold process")
    return time.perf_counter() - started_s


def _run_one_cold(number: int) -> bool:
    done = subprocess.run(
        [sys.executable, "-I", "-c", _TRIVIAL],
        input=f"{number}\n".encode(),
        capture_output=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    return done.stdout == f"{number + 1}\n".encode()
