"""Gold answers that have to be worked out, in real processes: the loader's and the children."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import symbolic_gold
from common.errors import DataError, PromptFileError
from common.prompt_file import PromptFile
from common.symbolic_gold import check_symbolic_gold

_VERIFY = [sys.executable, "-m", "common.cli", "verify", "--kind", "math"]
_SUM = "\\sum_{k=1}^{10} k"
_ENDLESS = "\\sum_{k=1}^{3} 9^{9^{9^{9}}}"


@pytest.fixture(autouse=True)
def _own_reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends with the test, and remembers nothing of other tests."""
    reader = symbolic_gold._Reader()
    monkeypatch.setattr(symbolic_gold, "_reader", reader)
    symbolic_gold._reason.cache_clear()
    yield
    if reader._process is not None:
        reader._end(reader._process)
    symbolic_gold._reason.cache_clear()


def _prompt_file(path: Path, *golds: str) -> Path:
    lines = [
        json.dumps({"prompt_id": f"p{place}", "prompt": "?", "task": "math", "gold": gold})
        for place, gold in enumerate(golds)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_prompt_file_may_have_gold_answers_that_must_be_worked_out(tmp_path: Path) -> None:
    path = _prompt_file(tmp_path / "good.jsonl", "2", _SUM, "\\int_0^1 x \\, dx")
    assert len(PromptFile(path)) == 3


def test_one_that_math_verify_cannot_read_is_refused_with_file_and_line(tmp_path: Path) -> None:
    path = _prompt_file(tmp_path / "bad.jsonl", _SUM, "\\sum_{k=1}")
    with pytest.raises(PromptFileError, match=r"bad\.jsonl:2: malformed task: .*math-verify"):
        PromptFile(path)


@pytest.mark.slow
def test_one_that_is_never_worked_out_is_refused_in_time_and_the_next_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_symbolic_gold(_SUM)
    monkeypatch.setattr(symbolic_gold, "READ_LIMIT_S", 1.0)
    started_s = time.monotonic()
    with pytest.raises(DataError, match="working it out takes more than 1 s"):
        check_symbolic_gold(_ENDLESS)
    assert time.monotonic() - started_s < 3.0
    monkeypatch.setattr(symbolic_gold, "READ_LIMIT_S", 10.0)
    check_symbolic_gold("\\prod_{k=1}^{4} k")


@pytest.mark.slow
def test_a_reader_that_was_killed_from_outside_is_replaced() -> None:
    check_symbolic_gold(_SUM)
    process = symbolic_gold._reader._process
    assert process is not None
    process.kill()
    process.wait()
    check_symbolic_gold("\\prod_{k=1}^{4} k")
    assert symbolic_gold._reader._process is not process


@pytest.mark.slow
def test_a_hanging_answer_to_it_costs_only_itself() -> None:
    answers = ["55", _ENDLESS, "1=55", "54", "\\frac{110}{2}", "55\\%"]
    lines = [
        json.dumps({"id": place, "completion": f"\\boxed{{{answer}}}", "gold": _SUM})
        for place, answer in enumerate(answers)
    ]
    lines.append(json.dumps({"id": 6, "completion": "\\boxed{2}", "gold": "2"}))
    finished = subprocess.run(
        [*_VERIFY, "--wall-limit", "4"],
        input="\n".join(lines).encode(),
        capture_output=True,
        timeout=100,
        check=True,
    )
    found = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [(answer["status"], answer["reward"]) for answer in found] == [
        ("graded", 1.0),
        ("limit-exceeded", 0.0),
        ("graded", 0.0),
        ("graded", 0.0),
        ("graded", 1.0),
        ("graded", 0.0),
        ("graded", 1.0),
    ]
    assert b"Timeout is disabled" not in finished.stderr
