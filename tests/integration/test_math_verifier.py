"""Kind ``math`` in its real processes: the command line, the killable child, the prompt reader."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actors.verification.child import ChildLimits
from actors.verification.judgement import Check, VerifyJob
from actors.verification.pool import VerifierPool
from common.errors import PromptFileError
from common.prompt_file import PromptFile
from common.types import VerdictStatus

_VERIFY = [sys.executable, "-m", "common.cli", "verify", "--kind", "math"]


def _verify(lines: list[dict[str, Any]], *options: str) -> list[dict[str, Any]]:
    finished = subprocess.run(
        [*_VERIFY, *options],
        input="\n".join(map(json.dumps, lines)).encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr.decode()
    return [json.loads(line) for line in finished.stdout.splitlines()]


def test_the_command_answers_every_line_with_its_verdict() -> None:
    lines = [
        {"id": 1, "completion": "so \\boxed{\\frac{1}{2}}", "gold": "0.5"},
        {"id": 2, "completion": "so \\boxed{\\sqrt{117}}", "gold": "3\\sqrt{13}"},
        {"id": 3, "completion": "so \\boxed{1=2}", "gold": "2"},
        {"id": 4, "completion": "no answer", "gold": "2"},
        {"id": 5, "completion": "\\boxed{2}", "gold": "\\frac{1}{0}"},
        {"id": 6, "completion": "\\boxed{9^{9^{9}}}", "gold": "2"},
        {"id": 7, "completion": "\\boxed{2}", "gold": 2},
    ]
    answers = _verify(lines, "--workers", "2")
    assert [(answer["id"], answer["status"], answer["reward"]) for answer in answers] == [
        (1, "graded", 1.0),
        (2, "graded", 1.0),
        (3, "graded", 0.0),
        (4, "wrong-format", 0.0),
        (5, "bad-input", None),
        (6, "graded", 0.0),
        (7, "graded", 1.0),
    ]


def _job(answer: str, gold: str) -> VerifyJob:
    check = Check(kind="math", reference_json=json.dumps({"gold": gold}))
    return VerifyJob(completion=f"\\boxed{{{answer}}}", checks=(check,))


async def _judge_all(jobs: list[VerifyJob]) -> tuple[list[float | None], int]:
    async with VerifierPool(ChildLimits(10.0, 1 << 30), 1) as pool:
        replies = [await pool.judge(job) for job in jobs]
        assert all(reply.failure is None for reply in replies)
        return [reply.judgements[0].value for reply in replies], pool.num_restarts


def test_hostile_answers_cost_no_child_and_the_next_honest_one_is_right() -> None:
    import uvloop

    hostile = ["9^{9^{9}}", "(10^9)!", "(" * 3000, "9" * 100_000, "2" + "!" * 4000, "\x00", "\\"]
    jobs = [
        job for answer in hostile for job in (_job(answer, "2"), _job("\\sqrt{12}", "2\\sqrt{3}"))
    ]
    values, num_restarts = uvloop.run(_judge_all(jobs))
    assert values == [0.0, 1.0] * len(hostile)
    assert num_restarts == 0


def test_a_child_that_dies_in_mid_comparison_costs_no_verdict() -> None:
    import uvloop

    async def judge() -> VerdictStatus:
        async with VerifierPool(ChildLimits(10.0, 1 << 30), 1) as pool:
            os.kill(pool.pids[0], signal.SIGKILL)
            reply = await pool.judge(_job("\\sqrt{8}", "2\\sqrt{2}"))
            assert reply.judgements[0].value == 1.0
            return reply.judgements[0].status

    assert uvloop.run(judge()) is VerdictStatus.GRADED


_ONLY_ARITHMETIC = """
import sys
from actors.verification.registry import VERIFIERS
from actors.verification.math.verifier import compare

pairs = [("2", "2"), ("0.50", "1/2"), ("\\\\frac{3}{6}", "1/2"), ("50\\\\%", "50"), ("x=3", "3"),
         ("(1, 2)", "(1,2)"), ("\\\\{2, 1\\\\}", "1, 2"), ("(x-1)(x+1)", "x^2-1"), ("7", "8")]
for answer, gold in pairs:
    compare(answer, gold)
heavy = {"mpmath", "sympy", "math_verify", "latex2sympy2_extended", "antlr4", "numpy"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert compare("\\\\sqrt{8}", "2\\\\sqrt{2}").value == 1.0
assert heavy & set(sys.modules) == {"mpmath"}
"""


def test_a_child_that_sees_only_arithmetic_imports_no_numerics_and_none_ever_imports_sympy() -> (
    None
):
    finished = subprocess.run(
        [sys.executable, "-c", _ONLY_ARITHMETIC], capture_output=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr.decode()


@pytest.mark.parametrize("gold", ["9^{9^{9}}", "\\\\frac{1}", "1/0", "2 3"])
def test_a_prompt_file_with_a_bad_gold_answer_is_refused_with_file_and_line(
    tmp_path: Path, gold: str
) -> None:
    good = '{"prompt_id": "a", "prompt": "1+1=", "task": "math", "gold": "\\\\sqrt{4}"}'
    bad = good.replace('"a"', '"b"').replace("\\\\sqrt{4}", gold)
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{good}\n{bad}\n", encoding="utf-8")
    with pytest.raises(PromptFileError, match="prompts.jsonl:2: malformed task: gold must be"):
        PromptFile(path)
