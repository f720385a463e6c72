"""`headrace verify` as a user runs it: one answer a line, whatever the line."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

_VERIFY = [sys.executable, "-m", "common.cli", "verify"]
_GOOD = '{"id":%s,"completion":"<think></think><answer>%s</answer>","gold":"31"}'
_ENDLESS_LINE_BYTES = 200_000_000


def _verify(*options: str, lines: bytes) -> list[dict[str, Any]]:
    finished = subprocess.run(
        [*_VERIFY, *options], input=lines, capture_output=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr.decode()
    assert finished.stderr == b""
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
        ("countdown", {"completion": "<answer>2*3</answer>", "numbers": [3, 2], "target": 6}, 1),
    ],
)
def test_each_kind_has_its_own_fields(kind: str, line: dict[str, Any], reward: float) -> None:
    (answer,) = _verify("--kind", kind, lines=json.dumps({"id": "x", **line}).encode())
    assert (answer["id"], answer["reward"]) == ("x", reward)


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
    assert int(finished.stderr) < _ENDLESS_LINE_BYTES // 2


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
    assert b"known kinds: arithmetic, countdown, format" in finished.stderr
