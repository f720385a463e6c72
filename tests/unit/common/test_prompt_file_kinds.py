"""Prompt files with tasks of kind choice, countdown and task: bad fields name file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import PromptFileError
from common.prompt_file import PromptFile
from common.reasoning_gym_catalog import is_installed

_ENTRY = {"question": "2+2", "answer": "4", "metadata": {"source_dataset": "chain_sum"}}


def _write(folder: Path, task: str, *lines: dict[str, Any]) -> Path:
    path = folder / "prompts.jsonl"
    records = (
        {"prompt_id": f"p{number}", "prompt": "?", "task": task, **fields}
        for number, fields in enumerate(lines)
    )
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("choice", {"gold": "B"}),
        ("choice", {"gold": "c", "options": ["1", "2", "3"]}),
        ("choice", {"gold": "A", "options": {"A": "1", "B": "2"}}),
        ("countdown", {"numbers": [1, 2], "target": 3}),
        ("task", {"entry": _ENTRY}),
        ("task", {"entry": _ENTRY, "options": {"min_terms": 2}}),
        ("task", {"entry": {**_ENTRY, "answer": None}}),
    ],
)
def test_whole_fields_are_read_as_they_stand(
    task: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    prompt = PromptFile(_write(tmp_path, task, fields))[0]
    assert prompt.task == task
    assert json.loads(prompt.reference_json) == fields


_BAD: list[tuple[str, dict[str, Any], str]] = [
    ("choice", {}, "missing required field `gold`"),
    ("choice", {"gold": "AB"}, "gold must be one letter"),
    ("choice", {"gold": 2}, "Expected `str`, got `int` - at `$.gold`"),
    ("choice", {"gold": "D", "options": ["1", "2", "3"]}, "there are 3 (A to C)"),
    ("choice", {"gold": "A", "options": ["1"]}, "length >= 2"),
    ("choice", {"gold": "A", "options": ["1"] * 27}, "length <= 26"),
    ("choice", {"gold": "A", "options": {"A": "1", "C": "2"}}, "letters A, B, C and so on"),
    ("countdown", {"target": 3}, "missing required field `numbers`"),
    ("countdown", {"numbers": [], "target": 3}, "length >= 1"),
    ("countdown", {"numbers": [1, 2.5], "target": 3}, "Expected `int`, got `float`"),
    ("countdown", {"numbers": [-1], "target": 3}, ">= 0"),
    ("countdown", {"numbers": [1], "target": "3"}, "Expected `int`, got `str`"),
    ("task", {}, "missing required field `entry`"),
    ("task", {"entry": "x"}, "Expected `object`, got `str`"),
    ("task", {"entry": {"question": "?"}}, "entry must have a field answer"),
    ("task", {"entry": {"answer": "4"}}, "task must name the dataset"),
]


@pytest.mark.parametrize(("task", "fields", "message"), _BAD)
def test_malformed_fields_are_refused_with_file_and_line(
    task: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    good: dict[str, dict[str, Any]] = {
        "choice": {"gold": "A"},
        "countdown": {"numbers": [1], "target": 1},
    }
    path = _write(tmp_path, task, good.get(task, {"entry": _ENTRY}), fields)
    with pytest.raises(PromptFileError) as raised:
        PromptFile(path)
    assert str(raised.value).startswith(f"{path}:2: malformed task: ")
    assert message in str(raised.value)


@pytest.mark.skipif(not is_installed(), reason="needs reasoning-gym")
def test_an_unknown_dataset_is_refused_with_the_near_match(tmp_path: Path) -> None:
    entry = {**_ENTRY, "metadata": {"source_dataset": "chain_sums"}}
    path = _write(tmp_path, "task", {"entry": _ENTRY}, {"entry": entry})
    with pytest.raises(PromptFileError, match=r":2: .*'chain_sums' \(did you mean 'chain_sum'"):
        PromptFile(path)
