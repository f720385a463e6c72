"""B17: verdicts on math answers, against math-verify in a plain loop, and with hanging inputs.

Both judge the same JSON Lines: ours through ``headrace verify --kind math`` with a killable child a
core, the baseline in one process that calls ``math_verify.parse`` and ``verify`` as its
documentation shows, in the main thread, where its timeouts work. Answers are like those of a
training run: 70 % plain numbers, 20 % fractions and other LaTeX, 10 % that need more than
arithmetic. Hanging inputs are such as use up the five seconds of the baseline.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import util
from types import TracebackType
from typing import Any

from common.errors import FatalError
from deploy.bench.result import BenchResult, hardware_name, versions

NUM_ANSWERS = 4000
NUM_BASELINE_ANSWERS = 1000
NUM_REPEATS = 7
MIN_RATIO = 1.7
MIN_HANGING_RATIO = 0.90
HANGING_SHARE = 0.01

_HANGING = ("9^{9^{9}}", "(10^9)!", "\\binom{10^9}{5\\cdot10^8}", "\\sqrt{(10^7)!}")
_BASELINE = """
import json, sys
from math_verify import parse, verify
for line in sys.stdin:
    pair = json.loads(line)
    gold, answer = parse("\\\\boxed{" + pair["gold"] + "}"), parse(pair["completion"])
    print(json.dumps({"status": "graded", "reward": float(verify(gold, answer))}), flush=True)
"""


def bench_math() -> BenchResult:
    """Measure; the ratio is our verdicts a second over those of math-verify, higher is better."""
    if util.find_spec("math_verify") is None:
        raise FatalError("headrace bench math needs math-verify (pip install math-verify)")
    runs = _measure()
    rates = {name: [run.verdicts_per_s for run in done] for name, done in runs.items()}
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratio = median["headrace"] / median["math_verify"]
    hanging_ratio = _median_of_ratios(rates["headrace_hanging"], rates["headrace"])
    faults = max(
        run.num_wrong + run.num_lost for run in runs["headrace"] + runs["headrace_hanging"]
    )
    return BenchResult(
        name="math",
        ratio=ratio,
        goal=(
            f">= {MIN_RATIO:g}x math-verify; with {HANGING_SHARE:.0%} hanging inputs "
            f">= {MIN_HANGING_RATIO:g} of the clean rate; no verdict wrong or lost"
        ),
        passed=ratio >= MIN_RATIO and hanging_ratio >= MIN_HANGING_RATIO and not faults,
        baseline="math-verify's parse and verify in a plain loop",
        hardware=hardware_name(),
        details={
            "verdicts_per_s": rates,
            "with_hanging_over_clean": hanging_ratio,
            "wrong": {name: max(run.num_wrong for run in done) for name, done in runs.items()},
            "lost": {name: max(run.num_lost for run in done) for name, done in runs.items()},
            "num_answers": {"headrace": NUM_ANSWERS, "math_verify": NUM_BASELINE_ANSWERS},
            "num_workers": _num_workers(),
            "versions": versions("math-verify", "sympy", "mpmath"),
        },
    )


def _measure() -> dict[str, list[_Run]]:
    """The clean and the hanging run of a repeat follow each other, either of them first in turn."""
    clean = list(_pairs(random.Random(0), NUM_ANSWERS))
    inputs = {"headrace": clean, "headrace_hanging": _with_hanging(clean)}
    runs: dict[str, list[_Run]] = {"headrace": [], "headrace_hanging": [], "math_verify": []}
    for repeat in range(NUM_REPEATS):
        for name in sorted(inputs, reverse=bool(repeat % 2)):
            runs[name].append(_run(_our_command(), inputs[name]))
        runs["math_verify"].append(_run(_BASELINE_COMMAND, clean[:NUM_BASELINE_ANSWERS]))
    return runs


def _median_of_ratios(rates: Sequence[float], others: Sequence[float]) -> float:
    """Of runs side by side: what else the machine does in the meantime is in both."""
    return statistics.median(mine / other for mine, other in zip(rates, others, strict=True))


Pair = dict[str, str | int | float]
"""A line of ``headrace verify``, and under ``right`` whether the answer is right."""

_WARM_UP: Pair = {"id": 0, "completion": "\\boxed{\\sqrt{8}}", "gold": "2\\sqrt2", "right": 1.0}


def _pairs(rng: random.Random, count: int) -> Iterator[Pair]:
    """No pair occurs twice, so that no cache helps either side."""
    for number in range(count):
        kind = rng.random()
        right = rng.random() < 0.5
        if kind < 0.7:
            gold, answer = _plain(rng, number, right)
        elif kind < 0.9:
            gold, answer = _latex(rng, number, right)
        else:
            gold, answer = _symbolic(rng, number, right)
        completion = f"<think>so we get</think>The answer is \\boxed{{{answer}}}."
        yield {"id": number, "completion": completion, "gold": gold, "right": float(right)}


def _plain(rng: random.Random, number: int, right: bool) -> tuple[str, str]:
    gold = f"{number}.{rng.randrange(1, 100):02d}" if rng.random() < 0.2 else str(number)
    return gold, gold if right else gold + "1"


def _latex(rng: random.Random, number: int, right: bool) -> tuple[str, str]:
    numerator, denominator = 2 * number + 1 + (not right), 2 ** rng.randrange(1, 6)
    gold = f"\\frac{{{2 * number + 1}}}{{{denominator}}}"
    spellings = (
        f"{numerator}/{denominator}",
        f"\\dfrac{{{3 * numerator}}}{{{3 * denominator}}}",
        f"{numerator / denominator:.5f}",
        f"x = \\frac{{{numerator}}}{{{denominator}}}",
    )
    return gold, rng.choice(spellings)


def _symbolic(rng: random.Random, number: int, right: bool) -> tuple[str, str]:
    a, b = number + 2, rng.randrange(2, 30)
    c = b + (not right)
    cases = (
        (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * c}}}"),
        (f"(x+{a})(x-{b})", f"x^2+{a - c}x-{a * c}".replace("+-", "-")),
        (f"\\frac{{{a}}}{{\\sqrt{{{b}}}}}", f"\\frac{{{a}\\sqrt{{{c}}}}}{{{c}}}"),
        (f"\\{{{a}, {b}\\}}", f"{c}, {a}"),
        (f"({a}, {b}\\pi]", f"({a}, \\frac{{{2 * c}\\pi}}{{2}}]"),
    )
    return rng.choice(cases)


def _with_hanging(clean: Sequence[Pair]) -> list[Pair]:
    every = round(1 / HANGING_SHARE)
    return [
        {
            **pair,
            "completion": f"\\boxed{{{_HANGING[place // every % len(_HANGING)]}}}",
            "right": 0.0,
        }
        if place % every == 0
        else pair
        for place, pair in enumerate(clean)
    ]


def _num_workers() -> int:
    return len(os.sched_getaffinity(0))


_BASELINE_COMMAND = [sys.executable, "-c", _BASELINE]


def _our_command() -> list[str]:
    workers = str(_num_workers())
    return [sys.executable, "-m", "common.cli", "verify", "--kind", "math", "--workers", workers]


@dataclass(frozen=True, slots=True)
class _Run:
    verdicts_per_s: float
    num_wrong: int
    num_lost: int
    """Lines that were not judged: the machinery failed."""


def _run(command: Sequence[str], pairs: Sequence[Pair]) -> _Run:
    """Rate from the first line sent to the last answer; starting and importing do not count."""
    with _Judge(command) as judge:
        judge.answers([_WARM_UP] * 2 * _num_workers())
        start_s = time.perf_counter()
        answers = judge.answers(pairs)
        seconds = time.perf_counter() - start_s
    lost = sum(answer["reward"] is None for answer in answers)
    wrong = sum(
        answer["reward"] not in (None, pair["right"])
        for answer, pair in zip(answers, pairs, strict=True)
    )
    return _Run(len(pairs) / seconds, wrong, lost)


class _Judge:
    """A process that answers JSON Lines in order."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def __enter__(self) -> _Judge:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def answers(self, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        """One answer a pair. A thread writes, so that neither pipe can fill up and block."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise FatalError("a judge has a standard input and output")
        lines = b"".join(json.dumps(pair).encode() + b"\n" for pair in pairs)

        def write() -> None:
            stdin.write(lines)
            stdin.flush()

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        found = [stdout.readline() for _ in pairs]
        writer.join()
        if not all(found):
            raise FatalError("a judge of the benchmark ended early")
        return [json.loads(line) for line in found]
