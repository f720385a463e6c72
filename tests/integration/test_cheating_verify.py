"""`headrace verify` asked to hang, to spoil a file, or to say a reward that is no number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from actors.verification.cli import verify

_VERIFY = [sys.executable, "-m", "common.cli", "verify", "--kind", "arithmetic"]
_LINE = b'{"id":1,"completion":"<answer>1</answer>","gold":"1"}\n'


def _verify(*options: str, stdin: int | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [*_VERIFY, *options]
    if stdin is not None:
        return subprocess.run(command, stdin=stdin, capture_output=True, timeout=60, check=False)
    return subprocess.run(command, input=_LINE, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--rewards", "accuracy=nan"), "a weight must be a number, got 'nan'"),
        (("--rewards", "accuracy=1e309"), "a weight must be a number, got '1e309'"),
        (("--rewards", "format=-inf"), "a weight must be a number, got '-inf'"),
        (("--rewards", "accuracy,accuracy=2"), "each term is named once, got 'accuracy' twice"),
        (("--rewards", "accuracy, accuracy"), "each term is named once, got 'accuracy' twice"),
        (("--rewards", "function"), "'function' is named by its own name in a run file"),
        (("--rewards", "trial"), "trial must be judged by a known kind of check"),
        (("--wall-limit", "nan"), "must be a number of seconds, got nan"),
        (("--kind", "function"), "no verifier for 'function'"),
        (("--kind", "trial"), "no verifier for 'trial'"),
    ],
)
def test_an_option_that_would_make_no_reward_is_a_usage_error(
    options: tuple[str, str], told: str
) -> None:
    result = CliRunner().invoke(verify, ["--kind", "arithmetic", *options])
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())


def test_every_line_may_be_said_to_begin_inside_its_thought() -> None:
    for options, reward in (((), 1.0), (("--inside-thought",), 0.0)):
        assert json.loads(_verify("--quiet", *options).stdout)["reward"] == reward


def test_an_input_that_cannot_be_read_ends_the_command(tmp_path: Path) -> None:
    finished = _verify("--input", str(tmp_path))
    assert finished.returncode == 1
    assert finished.stderr.startswith(b"headrace: cannot read or write: [Errno 21]")
    assert finished.stderr.count(b"\n") == 1


@pytest.mark.parametrize("how", ["hard link", "symbolic link", "standard input"])
def test_an_output_that_is_the_input_by_another_name_is_left_as_it_is(
    how: str, tmp_path: Path
) -> None:
    lines, other = tmp_path / "lines.jsonl", tmp_path / "other.jsonl"
    lines.write_bytes(_LINE)
    if how == "hard link":
        other.hardlink_to(lines)
    else:
        other.symlink_to(lines)
    with lines.open("rb") as stream:
        finished = (
            _verify("--output", str(lines), stdin=stream.fileno())
            if how == "standard input"
            else _verify("--input", str(lines), "--output", str(other))
        )
    assert finished.returncode == 1
    assert b"is the input as well" in finished.stderr
    assert lines.read_bytes() == _LINE


def test_an_older_output_is_replaced_whole(tmp_path: Path) -> None:
    lines, output = tmp_path / "lines.jsonl", tmp_path / "output.jsonl"
    lines.write_bytes(_LINE)
    output.write_bytes(b"older and longer\n" * 100)
    assert _verify("--input", str(lines), "--output", str(output)).returncode == 0
    assert json.loads(output.read_bytes())["reward"] == 1.0


@pytest.mark.parametrize(("closed", "name"), [(0, "input"), (1, "output")])
def test_a_closed_standard_stream_is_an_error_and_not_a_hang(closed: int, name: str) -> None:
    finished = subprocess.run(
        _VERIFY,
        preexec_fn=lambda: os.close(closed),
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 1
    assert finished.stderr.startswith(f"headrace: standard {name} is closed".encode())


def test_numbers_that_name_a_line_come_back_to_the_last_digit() -> None:
    numbers = ["9007199254740993", "12345678901234567890123", "-1", "0.1"]
    lines = "\n".join(_LINE.decode().strip().replace('"id":1', f'"id":{n}') for n in numbers)
    finished = subprocess.run(
        _VERIFY, input=lines.encode(), capture_output=True, timeout=60, check=True
    )
    found = [line.partition(b",")[0] for line in finished.stdout.splitlines()]
    assert found == [f'{{"id":{number}'.encode() for number in numbers]
