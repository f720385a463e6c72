"""Prompt files: good ones, and a table of bad ones with the line that each error must name."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from common.errors import PromptFileError
from common.prompt_file import MAX_LINE_BYTES, PromptFile

GOOD = b'{"prompt_id": "a", "prompt": "1+1=", "task": "arithmetic", "gold": "2"}\n'


def _write(folder: Path, data: bytes) -> Path:
    path = folder / "prompts.jsonl"
    path.write_bytes(data)
    return path


def test_fields_beside_the_three_known_ones_become_the_reference(tmp_path: Path) -> None:
    line = {"prompt_id": "ä", "prompt": "2+3=", "task": "arithmetic", "gold": "5", "tags": ["é", 1]}
    path = _write(tmp_path, GOOD + b"\n" + json.dumps(line, ensure_ascii=False).encode())
    prompts = PromptFile(path)
    assert len(prompts) == 2
    assert (prompts[1].prompt_id, prompts[1].text, prompts[1].task) == ("ä", "2+3=", "arithmetic")
    assert json.loads(prompts[1].reference_json) == {"gold": "5", "tags": ["é", 1]}
    assert json.loads(prompts[0].reference_json) == {"gold": "2"}


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    assert PromptFile(_write(tmp_path, GOOD.replace(b"\n", b"\r\n")))[0].prompt_id == "a"


BAD: dict[str, tuple[bytes, int | None, str]] = {
    "broken JSON": (GOOD + b'{"prompt_id": "b", ', 2, "not valid JSON"),
    "not an object": (b'["a"]\n', 1, "must be a JSON object, got list"),
    "missing field": (GOOD + b'{"prompt_id": "b", "prompt": "x"}', 2, 'field "task" is missing'),
    "wrong type": (
        b'{"prompt_id": 7, "prompt": "x", "task": "arithmetic"}',
        1,
        'field "prompt_id" must be text, got int',
    ),
    "unknown task": (
        b'{"prompt_id": "a", "prompt": "x", "task": "arithmetik", "gold": "2"}',
        1,
        "did you mean arithmetic?",
    ),
    "no gold": (b'{"prompt_id": "a", "prompt": "x", "task": "arithmetic"}', 1, "`gold`"),
    "gold that is no number": (
        b'{"prompt_id": "a", "prompt": "x", "task": "arithmetic", "gold": "two"}',
        1,
        "gold must be a number",
    ),
    "null": (b'{"prompt_id": "a", "prompt": null, "task": "arithmetic"}', 1, "got NoneType"),
    "empty text": (b'{"prompt_id": "a", "prompt": "", "task": "arithmetic"}', 1, "1 to"),
    "long id": (
        b'{"prompt_id": "' + b"a" * 129 + b'", "prompt": "x", "task": "arithmetic"}',
        1,
        "1 to 128 characters, got 129",
    ),
    "duplicate id": (GOOD + b"\n" + GOOD, 3, "prompt_id 'a' stands on line 1 already"),
    "not a number": (GOOD.replace(b'"2"', b"NaN"), 1, "not valid JSON"),
    "empty file": (b"", None, "holds no prompt"),
    "blank lines only": (b"\n \n", None, "holds no prompt"),
    "not UTF-8": (GOOD + GOOD.replace(b'"a"', b'"\xff"'), 2, "must be UTF-8"),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, 1, "byte order mark"),
    "UTF-16": (GOOD.decode().encode("utf-16"), 1, "byte order mark"),
    "deep nesting": (b"[" * 100_000, 1, "not valid JSON"),
    "long line": (GOOD + b'{"prompt": "' + b"x" * MAX_LINE_BYTES, 2, "longer than 1048576 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_file_line_and_cure(tmp_path: Path, name: str) -> None:
    data, line, reason = BAD[name]
    path = _write(tmp_path, data)
    with pytest.raises(PromptFileError) as refused:
        PromptFile(path)
    message = str(refused.value)
    assert message.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert reason in message
    assert message.endswith(")"), "the cure stands in brackets at the end"
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match=r"nowhere\.jsonl: no such file"):
        PromptFile(tmp_path / "nowhere.jsonl")


def test_a_file_of_one_endless_line_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    with open(path, "wb") as file:
        file.truncate(1 << 30)  # a gigabyte without a line end, sparse on disk
    tracemalloc.start()
    try:
        with pytest.raises(PromptFileError, match=":1: line is longer than 1048576 bytes"):
            PromptFile(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_changes_under_the_broker_is_an_error_not_a_wrong_prompt(
    tmp_path: Path,
) -> None:
    path = _write(tmp_path, GOOD)
    prompts = PromptFile(path)
    path.write_bytes(b"#" * len(GOOD))
    with pytest.raises(PromptFileError, match=":1: not valid JSON"):
        prompts[0]
