"""Right solutions pass and all others fail, each for its own reason."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from actors.verification.code.judge import code_judge
from actors.verification.code.separating import separating_tests
from actors.verification.judgement import Check, VerifyJob
from actors.verification.sandbox.limits import BoxLimits, Tier
from common.config import VerifierConfig
from common.types import VerdictStatus
from tests.integration.sandbox.host import Host, completion_of
from tests.integration.sandbox.problems import CPP, FORTY_TWO_FIRST, PROBLEMS, SLOW_S, Problem


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host(BoxLimits(), Tier.NAMESPACES) as running:
        yield running


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda item: item.name)
def test_only_the_right_solution_passes(host: Host, problem: Problem) -> None:
    num_tests = len(problem.cases)
    right = host.judge(problem.right, problem.task())
    assert (right.value, right.reason) == (1.0, f"{num_tests} of {num_tests} tests right")
    wrong = host.judge(problem.wrong, problem.task())
    assert wrong.value == 0.0
    assert " wrong" in wrong.reason
    assert "error" not in wrong.reason
    trivial = host.judge(problem.trivial, problem.task(all_or_nothing=False))
    assert trivial.value == sum(value is None for _, value in problem.cases) / num_tests
    crashing = host.judge(problem.crashing, problem.task())
    assert (crashing.value, "runtime error" in crashing.reason) == (0.0, True)
    broken = host.judge(problem.right + "\n)", problem.task())
    assert (broken.value, "syntax error" in broken.reason) == (0.0, True)


@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[-1]], ids=lambda item: item.name)
def test_a_right_solution_that_takes_too_long_is_too_slow(host: Host, problem: Problem) -> None:
    timed = problem.task(limits={"time_s": SLOW_S})
    slow = host.judge(problem.slow, timed)
    assert (slow.value, "too slow" in slow.reason) == (0.0, True)
    assert host.judge(problem.slow, problem.task()).value == 1.0


def test_the_list_is_sorted_with_42_in_front(host: Host) -> None:
    task = {"function": "f", "tests": [{"args": [[3, 1, 2]], "expected": [42, 1, 2, 3]}]}
    assert host.judge(FORTY_TWO_FIRST.right, task).value == 1.0
    outcomes = {
        "def f(x) return 1": "syntax error",
        "def f(x): return x[7]": "runtime error",
        "def f(x): return sorted(x)": "wrong",
        "def f(x):\n while True: pass": "limit (cpu)",
    }
    for program, reason in outcomes.items():
        judgement = host.judge(program, task | {"limits": {"cpu_s": 0.3}})
        assert (judgement.value, reason in judgement.reason) == (0.0, True)


def test_the_share_of_tests_passed_can_be_the_reward(host: Host) -> None:
    task = {
        "function": "f",
        "all_or_nothing": False,
        "tests": [{"args": [x], "expected": x} for x in range(4)],
    }
    assert host.judge("def f(x): return x if x < 3 else None", task).value == 0.75
    crash = "import os\ndef f(x): return x if x else os._exit(0)"
    judgement = host.judge(crash, task)
    assert (judgement.value, judgement.reason) == (
        0.75,
        "3 of 4 tests right, 1 wrong; first: wrong (it ended without a value)",
    )


@pytest.mark.slow
def test_programs_in_cpp_are_compiled_and_run(host: Host) -> None:
    task = CPP.task(language="cpp")
    assert host.judge(CPP.right, task).value == 1.0
    assert host.judge(CPP.wrong, task).reason == "0 of 2 tests right, 1 wrong, 1 not run"
    slow = "int main(){ volatile int x = 0; while (true) x = 1; }"
    judgement = host.judge(slow, task | {"limits": {"cpu_s": 0.3}})
    assert judgement.status is VerdictStatus.LIMIT_EXCEEDED
    memory = "#include <vector>\nint main(){ std::vector<char> x(1ul << 40, 'x'); return x[9]; }"
    assert "limit (memory)" in host.judge(memory, task).reason


_CLOSE_ENOUGH = """
import sys
given, output, expected = (open(name).read() for name in sys.argv[1:])
print("accept" if sorted(output.split()) == sorted(expected.split()) else "reject")
"""


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print(3, 1, 2)", "1 of 1 tests right"),
        ("print(3, 1)", "rejected by the checker"),
        ("import os; os.write(1, b'\\xff')", "the checker failed on this output"),
        ("print('accept'); raise SystemExit(3)", "exit code 3"),
    ],
)
def test_a_special_judge_decides_in_a_box_of_its_own(host: Host, program: str, reason: str) -> None:
    task = {"tests": [{"input": "", "output": "1 2 3"}], "checker": _CLOSE_ENOUGH}
    assert reason in host.judge(program, task).reason


@pytest.mark.parametrize(
    "checker",
    ["pass", "raise SystemExit(0)", "print('accept'); raise SystemExit(1)", "print('accepted')"],
)
def test_a_special_judge_that_does_not_say_accept_does_not_accept(host: Host, checker: str) -> None:
    task = {"tests": [{"input": "", "output": ""}], "checker": checker}
    assert host.judge("pass", task).value == 0.0


def test_a_special_judge_with_a_syntax_error_is_a_bad_task(host: Host) -> None:
    task = {"tests": [{"input": "", "output": ""}], "checker": "print('accept'"}
    judgement = host.judge("pass", task)
    assert (judgement.status, judgement.value) == (VerdictStatus.BAD_INPUT, None)


def test_a_special_judge_may_look_at_a_returned_value(host: Host) -> None:
    checker = (
        "import json\nx = json.load(open('output.txt'))\n"
        "print('accept' if x * x == 2.25 else 'reject')"
    )
    task = {"function": "f", "tests": [{"args": [2.25], "expected": 1.5}], "checker": checker}
    assert host.judge("def f(x): return -1.5", task).value == 1.0
    assert host.judge("def f(x): return 1.4", task).value == 0.0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tests": []}, "length"),
        ({"tests": [{"input": "1"}]}, "input and output"),
        ({"tests": [{"args": [1], "expected": 1}]}, "go with function"),
        ({"function": "f", "tests": [{"input": "", "output": ""}]}, "go with function"),
        ({"function": "1f", "tests": [{"args": [], "expected": 1}]}, "Python name"),
    ],
)
def test_a_malformed_task_is_bad_input(host: Host, fields: dict[str, Any], reason: str) -> None:
    judgement = host.judge("pass", fields)
    assert judgement.status is VerdictStatus.BAD_INPUT
    assert reason in judgement.reason


@pytest.mark.parametrize(("memory_bytes", "value"), [(128 << 20, 0.0), (512 << 20, 1.0)])
def test_the_memory_of_a_program_is_what_the_verifier_says(memory_bytes: int, value: float) -> None:
    async def judge() -> float | None:
        task = {"tests": [{"input": "", "output": "200"}]}
        check = Check(kind="code", reference_json=json.dumps(task))
        program = completion_of("print(len(bytearray(200 << 20)) >> 20)")
        async with code_judge(VerifierConfig(memory_limit_bytes=memory_bytes)) as judge:
            reply = await judge.judge(VerifyJob(completion=program, checks=(check,)))
        assert ("limit (memory)" in reply.judgements[0].reason) is not bool(value)
        return reply.judgements[0].value

    assert asyncio.run(judge()) == value


def test_an_answer_without_a_program_has_the_wrong_format(host: Host) -> None:
    check = Check(kind="code", reference_json=json.dumps(FORTY_TWO_FIRST.task()))
    job = VerifyJob(completion="<think>hm</think>I do not know.", checks=(check, check))
    reply = host.call(host.judge_.judge(job))
    assert [item.status for item in reply.judgements] == [VerdictStatus.WRONG_FORMAT] * 2
    assert len(reply.check_seconds) == 2


def test_a_machine_that_fails_is_no_verdict(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.verification.sandbox.launcher.START_LIMIT_S", 0.01)
    (pid,) = host.sandbox.pids
    os.kill(pid, signal.SIGKILL)
    reply = host.reply(FORTY_TWO_FIRST.right, FORTY_TWO_FIRST.task())
    assert (reply.failure, reply.judgements) == (VerdictStatus.INFRA_ERROR, ())
    monkeypatch.undo()
    host.assert_next_honest_job_is_right()


def test_jobs_side_by_side_get_their_own_verdicts(host: Host) -> None:
    async def judge_all() -> list[float | None]:
        jobs = [
            VerifyJob(
                completion=completion_of(f"def f(x): return x + {number % 2}"),
                checks=(
                    Check(
                        kind="code",
                        reference_json=json.dumps(
                            {"function": "f", "tests": [{"args": [number], "expected": number + 1}]}
                        ),
                    ),
                ),
            )
            for number in range(12)
        ]
        replies = await asyncio.gather(*(host.judge_.judge(job) for job in jobs))
        return [reply.judgements[0].value for reply in replies]

    assert host.call(judge_all()) == [0.0, 1.0] * 6


def test_generated_cases_are_chosen_by_what_they_tell_apart(host: Host) -> None:
    inputs = [[], [1], [2, 1], [1, 1], [3, 1, 2]]
    right = "def f(x): return [42] + sorted(x)"
    wrong = [
        "def f(x): return [42] + x",
        "def f(x): return [42] + sorted(set(x))",
        "def f(x): return [42] + sorted(x)[:2]",
    ]

    def outputs(program: str) -> list[list[int] | None]:
        expected = [[42, *sorted(x)] for x in inputs]
        cases = [({"args": [x], "expected": y}, y) for x, y in zip(inputs, expected, strict=True)]
        passed = [
            host.judge(program, {"function": "f", "tests": [test]}).value for test, _ in cases
        ]
        return [y if ok else None for (_, y), ok in zip(cases, passed, strict=True)]

    found = separating_tests(inputs, [outputs(right)], [outputs(program) for program in wrong])
    assert (found.num_disputed, found.unbroken) == (0, ())
    tests = [{"args": [x], "expected": y} for x, y in found.cases]
    assert [x for x, _ in found.cases] == [[1, 1], [3, 1, 2]]
    assert host.judge(right, {"function": "f", "tests": tests}).value == 1.0
    for program in wrong:
        assert host.judge(program, {"function": "f", "tests": tests}).value == 0.0


@pytest.mark.slow
def test_the_command_line_judges_programs() -> None:
    lines = [
        {"id": 1, "completion": completion_of(FORTY_TWO_FIRST.right), **FORTY_TWO_FIRST.task()},
        {"id": 2, "completion": completion_of(FORTY_TWO_FIRST.wrong), **FORTY_TWO_FIRST.task()},
        {"id": 3, "completion": completion_of("while True: pass"), "tests": [], "function": "f"},
        {
            "id": 4,
            "completion": completion_of("while True: pass"),
            "tests": [{"input": "", "output": ""}],
            "limits": {"cpu_s": 0.3},
        },
    ]
    done = subprocess.run(
        [sys.executable, "-m", "common.cli", "verify", "--kind", "code"],
        input="\n".join(json.dumps(line) for line in lines),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(item["status"], item["reward"]) for item in answers] == [
        ("graded", 1.0),
        ("graded", 0.0),
        ("bad-input", None),
        ("limit-exceeded", 0.0),
    ]
