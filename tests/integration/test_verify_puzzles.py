"""``headrace verify`` on the kinds choice, countdown and task, as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from common.reasoning_gym_catalog import is_installed, make_dataset


def _verify(kind: str, *lines: dict[str, Any]) -> list[dict[str, Any]]:
    ran = subprocess.run(
        [sys.executable, "-m", "common.cli", "verify", "--kind", kind, "--quiet"],
        input="\n".join(json.dumps({"id": i, **line}) for i, line in enumerate(lines)),
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in ran.stdout.splitlines()]


def _answer(text: str) -> str:
    return f"<think></think><answer>{text}</answer>"


def test_choice_lines_are_judged_and_bad_ones_answered() -> None:
    verdicts = _verify(
        "choice",
        {"completion": _answer("(B)"), "gold": "B"},
        {"completion": _answer("Paris"), "gold": "B", "options": ["London", "Paris"]},
        {"completion": _answer("A or B"), "gold": "B"},
        {"completion": "B", "gold": "B"},
        {"completion": _answer("B"), "gold": "BC"},
    )
    assert [verdict["reward"] for verdict in verdicts] == [1.0, 1.0, 0.0, 0.0, None]
    statuses = [verdict["status"] for verdict in verdicts]
    assert statuses == ["graded", "graded", "graded", "wrong-format", "bad-input"]
    assert verdicts[2]["reason"] == "several letters"


def test_powers_are_no_countdown() -> None:
    verdicts = _verify(
        "countdown",
        {"completion": _answer("8/(3-8/3)"), "numbers": [3, 3, 8, 8], "target": 24},
        {"completion": _answer("2**3"), "numbers": [2, 3], "target": 8},
        {"completion": _answer("9**9**9**9"), "numbers": [9, 9, 9, 9], "target": 9},
    )
    assert [verdict["reward"] for verdict in verdicts] == [1.0, 0.0, 0.0]
    assert {verdict["status"] for verdict in verdicts} == {"graded"}


@pytest.mark.skipif(not is_installed(), reason="needs reasoning-gym")
def test_a_puzzle_is_scored_by_its_dataset() -> None:
    entry = make_dataset("leg_counting", {}, seed=1)[0]
    verdicts = _verify(
        "task",
        {"completion": _answer(entry["answer"]), "task": "leg_counting", "entry": entry},
        {"completion": _answer("none"), "task": "leg-counting", "entry": entry},
        {"completion": _answer("1"), "task": "leg_countin", "entry": {"answer": "1"}},
        {"completion": _answer("1"), "task": "leg_counting"},
    )
    assert [verdict["status"] for verdict in verdicts] == ["graded", "graded"] + ["bad-input"] * 2
    assert [verdict["reward"] for verdict in verdicts] == [1.0, 0.0, None, None]
    assert "did you mean 'leg_counting'?" in verdicts[2]["reason"]
    assert "missing required field `entry`" in verdicts[3]["reason"]
