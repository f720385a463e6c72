"""`headrace verify` as a user runs it: one answer a line, whatever the line."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_VERIFY = [sys.executable, "-m", "common.cli", "verify"]
_GOOD = '{"id":%s,"completion":"<think></think><answer>%s</answer>","gold":"31"}'
REPOSITORY = Path(__file__).parents[2]
_ENDLESS_LINE_BYTES = 200_000_000


def _verify(*options: str, lines: bytes) -> list[dict[str, Any]]:
    finished = subprocess.run(
        [*_VERIFY, *options], input=lines, capture_output=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr.decode()
    return [json.loads(line) for line in finished.stdout.splitlines()]


def test_every_line_gets_one_answer_in_the_order_read() -> None:
    lines = [
        _GOOD % (1, 31),
        "garbage",
        "",
        _GOOD % ('"two"', 13),
        '{"id":3,"completion":"31","gold":"31"}',
        '{"id":4,"gold":"31"}',
        '{"id":5,"completion":"<answer>1</answer>","gold":"one"}',
    ]
    answers = _verify("--kind", "arithmetic", lines="\n".join(lines).encode())
    assert [(answer["id"], answer["status"], answer["reward"]) for answer in answers] == [
        (1, "graded", 1.0),
        (None, "bad-input", None),
        (None, "bad-input", None),
        ("two", "graded", 0.0),
        (3, "wrong-format", 0.0),
        (4, "bad-input", None),
        (5, "bad-input", None),
    ]
    assert all(set(a) == {"id", "status", "reward", "components", "reason"} for a in answers)


def test_the_terms_of_the_reward_can_be_chosen() -> None:
    line = (_GOOD % (1, 31)).encode()
    (answer,) = _verify("--kind", "arithmetic", "--rewards", "accuracy,format=0.5", lines=line)
    assert answer["reward"] == 1.5
    assert answer["components"] == {"accuracy": 1.0, "format": 1.0}


@pytest.mark.parametrize(
    ("kind", "line", "reward"),
    [
        ("format", {"completion": "<think>a</think><answer>b</answer>", "template": "r1-zero"}, 1),
        ("format", {"completion": "b", "template": "r1-zero"}, 0),
        ("format", {"completion": "|a||b|c", "template": "special-token", "token": "|b|"}, 0),
        ("format", {"completion": "|b|a|b|c", "template": "special-token", "token": "|b|"}, 1),
        ("countdown", {"completion": "<answer>2*3</answer>", "numbers": [3, 2], "target": 6}, 1),
        ("math", {"completion": r"so \boxed{\frac{1}{2}}", "gold": "0.5"}, 1),
        ("choice", {"completion": "<answer>(B)</answer>", "gold": "B"}, 1),
        ("choice", {"completion": "<answer>(C)</answer>", "gold": "B"}, 0),
        ("language", {"completion": "<think>one two three 四</think>", "target": "en"}, 0.75),
        ("language", {"completion": "<think>我们计算</think>", "target": "zh"}, 1),
    ],
)
def test_each_kind_has_its_own_fields(kind: str, line: dict[str, Any], reward: float) -> None:
    (answer,) = _verify("--kind", kind, lines=json.dumps({"id": "x", **line}).encode())
    assert (answer["id"], answer["reward"]) == ("x", reward)


def test_files_are_read_and_written_and_the_summary_says_what_came_out(tmp_path: Path) -> None:
    lines = [_GOOD % (1, 31), _GOOD % (2, 13), "garbage", '{"id":4,"completion":"9","gold":"9"}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    finished = subprocess.run(
        [*_VERIFY, "--kind", "arithmetic", "--input", "in.jsonl", "--output", "out.jsonl"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        timeout=60,
        check=True,
    )
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["reward"] for answer in answers] == [1.0, 0.0, None, 0.0]
    assert finished.stdout == b""
    told = finished.stderr.decode()
    assert "4 lines in" in told
    assert "graded 2, wrong-format 1, bad-input 1; mean reward 0.3333 of 3; 0 processes" in told


def test_nothing_is_said_where_quiet_is_asked_for() -> None:
    finished = subprocess.run(
        [*_VERIFY, "--kind", "arithmetic", "--quiet"],
        input=(_GOOD % (1, 31)).encode(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert finished.stderr == b""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--input", "/no/such/file"), "/no/such/file: cannot be opened: No such file"),
        (("--output", "/no/such/place/file"), "/no/such/place/file: cannot be opened"),
        (("--config", "/no/such.toml"), "/no/such.toml: no such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_and_exit_code_1(
    options: tuple[str, str], told: str
) -> None:
    finished = subprocess.run(
        [*_VERIFY, "--kind", "arithmetic", *options],
        input=b"",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 1
    assert finished.stderr.decode().startswith(f"headrace: {told}")
    assert finished.stderr.count(b"\n") == 1


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(_GOOD % (1, 31))
    command = [*_VERIFY, "--kind", "arithmetic", "--input", str(path), "--output", str(path)]
    finished = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert finished.returncode == 1
    assert path.read_text() == _GOOD % (1, 31)


def test_progress_is_shown_on_a_terminal_and_the_answers_stay_clean() -> None:
    ours, theirs = pty.openpty()
    lines = "\n".join(_GOOD % (number, 31) for number in range(50)).encode()
    with subprocess.Popen(
        [*_VERIFY, "--kind", "arithmetic"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        os.close(theirs)
        stdout, _ = process.communicate(lines, timeout=60)
    shown = _read_all(ours)
    assert [json.loads(line)["id"] for line in stdout.splitlines()] == list(range(50))
    assert "50 lines, mean reward 1.000" in shown
    assert "headrace verify: 50 lines in" in shown


def _read_all(descriptor: int) -> str:
    """Everything that was written to a terminal that is closed by now."""
    chunks = []
    with contextlib.suppress(OSError):  # Linux says EIO at the end of a terminal
        while chunk := os.read(descriptor, 65536):
            chunks.append(chunk)
    os.close(descriptor)
    return b"".join(chunks).decode()


def test_tokens_on_a_line_are_what_shaping_is_computed_from() -> None:
    line = {"id": 1, "completion": "x", "gold": "1", "token_ids": [5] * 100}
    (answer,) = _verify(
        *("--kind", "arithmetic", "--rewards", "accuracy,repetition"),
        lines=json.dumps(line).encode(),
    )
    assert answer["components"]["repetition"] == pytest.approx(-80 / 81)


def test_an_import_of_the_command_loads_nothing_heavy() -> None:
    program = """
import sys
import actors.verification.cli, actors.verification.verify_lines, actors.verification.dispatch
print(sorted({"numpy", "rich", "sympy", "tokenizers", "torch", "vllm", "zmq"} & set(sys.modules)))
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=60, check=True
    )
    assert finished.stdout == b"[]\n"


_PROGRAM = {
    "completion": "```python\nprint(int(input()) * 2)\n```",
    "language": "python",
    "tests": [{"input": "4", "output": "8"}, {"input": "5", "output": "11"}],
}


@pytest.mark.slow
@pytest.mark.parametrize(("option", "reward"), [("--all-or-nothing", 0.0), ("--share", 0.5)])
def test_code_is_judged_in_the_sandbox_as_a_whole_or_by_its_share(
    option: str, reward: float
) -> None:
    line = json.dumps({"id": 1, **_PROGRAM}).encode()
    (answer,) = _verify("--kind", "code", option, lines=line)
    assert answer["reward"] == reward


@pytest.mark.slow
def test_a_task_of_reasoning_gym_is_scored_by_it() -> None:
    pytest.importorskip("reasoning_gym")
    entry = {"question": "2 + 3 =", "answer": "5", "metadata": {}}
    line = {"id": 1, "completion": "<answer>5</answer>", "task": "chain_sum", "entry": entry}
    (answer,) = _verify("--kind", "task", lines=json.dumps(line).encode())
    assert answer["reward"] == 1.0


_REPORT_PEAK_MEMORY = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, file=sys.stderr)
sys.exit(status)
"""


def test_a_line_without_end_is_bad_input_in_bounded_memory() -> None:
    lines = b"a" * _ENDLESS_LINE_BYTES + b"\n" + (_GOOD % (2, 31)).encode()
    finished = subprocess.run(
        [sys.executable, "-c", _REPORT_PEAK_MEMORY, *_VERIFY, "--kind", "arithmetic"],
        input=lines,
        capture_output=True,
        timeout=60,
        check=True,
    )
    answers = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [(answer["id"], answer["status"]) for answer in answers] == [
        (None, "bad-input"),
        (2, "graded"),
    ]
    assert int(finished.stderr.splitlines()[-1]) < _ENDLESS_LINE_BYTES // 2


def test_a_ten_megabyte_line_is_bad_input() -> None:
    (answer,) = _verify("--kind", "arithmetic", lines=b"a" * 10_000_000)
    assert (answer["id"], answer["status"], answer["reward"]) == (None, "bad-input", None)


def test_order_is_kept_over_several_processes() -> None:
    lines = "\n".join(_GOOD % (i, 31 if i % 2 else 30) for i in range(500)).encode()
    answers = _verify("--kind", "arithmetic", "--workers", "2", lines=lines)
    assert [answer["id"] for answer in answers] == list(range(500))
    assert [answer["reward"] for answer in answers] == [float(i % 2) for i in range(500)]


def test_a_caller_may_wait_for_each_answer() -> None:
    with subprocess.Popen(
        [*_VERIFY, "--kind", "arithmetic"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(3):
            process.stdin.write((_GOOD % (number, 31)).encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == number
        process.stdin.close()
        assert process.wait(timeout=20) == 0


def test_a_reader_that_has_seen_enough_ends_the_command_quietly() -> None:
    with subprocess.Popen(
        [*_VERIFY, "--kind", "arithmetic"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write((_GOOD % (1, 31)).encode() + b"\n")
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write((_GOOD % (2, 31)).encode() + b"\n")
        process.stdin.flush()
        assert process.wait(timeout=20) == 1
        assert process.stderr.read() == b""


def test_an_unknown_kind_is_a_usage_error_that_lists_the_known_ones() -> None:
    finished = subprocess.run(
        [*_VERIFY, "--kind", "haiku"], input=b"", capture_output=True, timeout=60, check=False
    )
    assert finished.returncode == 2
    told = " ".join(finished.stderr.decode().split())
    assert "no verifier for 'haiku' (known kinds: arithmetic," in told
    assert all(kind in told for kind in ("code", "countdown", "format", "helpful", "language"))
