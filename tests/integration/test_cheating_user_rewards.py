"""Answers that make a user's reward spoil the next answer's: copies, threads, memory, files."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from common.config import RewardWeight, VerifierConfig
from common.types import Verdict, VerdictStatus
from common.user_rewards import with_function
from tests.integration.user_reward_runs import verdicts_on

# One reward that answers with the number that it is given, and what answers make it do besides.
_REWARD = """
import os, subprocess, threading, time

KEPT = []
READY = threading.Event()

def spin():
    READY.set()
    while True:
        pass

class Unspeakable(Exception):
    def __str__(self):
        raise SystemExit(3)

class Number:
    def __float__(self):
        raise SystemExit(3)

def score(completion, *, prompt, reference):
    trick, _, value = completion.partition(" ")
    if trick == "copies":
        os.fork()
    if trick == "late-copy" and os.fork() == 0:
        time.sleep(0.2)
    if trick == "threads":
        threading.Thread(target=spin, daemon=True).start()
        READY.wait()
    if trick == "memory":
        KEPT.append(bytearray(300 << 20))
    if trick == "needs-memory":
        bytearray(300 << 20)
    if trick == "files":
        while True:
            KEPT.append(os.open("/dev/null", os.O_RDONLY))
    if trick == "needs-a-file":
        open("/dev/null").close()
    if trick == "program":
        return subprocess.Popen(["/bin/sleep", "1000"]).pid
    if trick == "exits-as-a-number":
        return Number()
    if trick == "process":
        return os.getpid()
    if trick == "unspeakable":
        raise Unspeakable
    return float(value or 0)
"""


def _verdicts(folder: Path, completions: list[str], *, weight: float = 1.0) -> list[Verdict]:
    (folder / "mine.py").write_text(_REWARD, encoding="utf-8")
    named = RewardWeight(name="mine", module="mine.py:score", weight=weight)
    term = with_function(named, folder)
    config = VerifierConfig(rewards=(term,), wall_limit_s=3.0, memory_limit_bytes=600 << 20)
    return verdicts_on(config, completions)


@pytest.mark.parametrize(
    ("first", "others"),
    [
        ("copies 0.9", ["plain 0.1", "plain 0.2", "copies 0.3", "plain 0.4"]),
        ("late-copy 0.9", ["plain 0.1", "plain 0.2", "plain 0.3"]),
        ("memory 0.9", ["needs-memory 0.1", "memory 0.2", "needs-memory 0.3"]),
    ],
)
def test_every_answer_has_the_reward_that_is_its_own(
    first: str, others: list[str], tmp_path: Path
) -> None:
    completions = [first, *others]
    verdicts = _verdicts(tmp_path, completions)
    assert [verdict.reward for verdict in verdicts] == [
        float(completion.split()[1]) for completion in completions
    ]


def test_a_thread_that_an_answer_leaves_behind_ends_with_its_process(tmp_path: Path) -> None:
    verdicts = _verdicts(tmp_path, ["process", "plain", "process", "threads 0.9", "process"])
    first, _, again, spinning, after = [verdict.reward for verdict in verdicts]
    assert first == again
    assert spinning == 0.9
    assert after not in (None, first)


def _ends(pid: int) -> bool:
    """Whether the process ends within ten seconds."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended = select.poll()
    ended.register(descriptor, select.POLLIN)
    try:
        return bool(ended.poll(10_000))
    finally:
        os.close(descriptor)


def test_a_program_that_an_answer_leaves_running_ends_with_its_process(tmp_path: Path) -> None:
    (started,) = _verdicts(tmp_path, ["program"])
    assert started.reward is not None
    assert _ends(int(started.reward))
    first, _, second = _verdicts(tmp_path, ["process", "program", "process"])
    assert first.reward != second.reward


def test_a_number_that_exits_when_it_is_read_is_told(tmp_path: Path) -> None:
    first, second = _verdicts(tmp_path, ["exits-as-a-number", "plain 0.5"])
    assert first.status is VerdictStatus.INFRA_ERROR
    assert "returned no number: SystemExit: 3 (mine.py, line" in first.reason
    assert second.reward == 0.5


def test_a_reward_that_used_up_its_files_costs_the_next_answer_nothing(tmp_path: Path) -> None:
    first, second = _verdicts(tmp_path, ["files", "needs-a-file 0.5"])
    assert first.status is VerdictStatus.INFRA_ERROR
    assert (second.status, second.reward) == (VerdictStatus.GRADED, 0.5)


def test_an_error_that_exits_when_it_is_told_is_told_without_its_words(tmp_path: Path) -> None:
    first, second = _verdicts(tmp_path, ["unspeakable", "plain 0.5"])
    assert first.status is VerdictStatus.INFRA_ERROR
    assert "raised Unspeakable: ? (mine.py, line" in first.reason
    assert second.reward == 0.5


def test_a_value_that_its_weight_makes_infinite_is_no_reward(tmp_path: Path) -> None:
    (verdict,) = _verdicts(tmp_path, ["plain 1e299"], weight=1e10)
    assert (verdict.status, verdict.reward) == (VerdictStatus.INFRA_ERROR, None)
    assert "not a finite number" in verdict.reason
