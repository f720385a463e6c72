"""The sample file: whole groups, durable, cut clean after a kill."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from actors.collection.samples import Sample, SampleLog
from common.errors import FatalError


def _group(group_id: int, size: int = 2, prompt_id: str = "") -> list[Sample]:
    return [
        Sample(
            group_id=group_id,
            index=index,
            group_size=size,
            prompt_id=prompt_id or f"p{group_id}",
            prompt="1+2=",
            completion="<think></think><answer>3</answer>",
            answer="3",
            status="graded",
            reward=2.0,
            accuracy=1.0,
            format=1.0,
            num_tokens=5,
            finish_reason="stop",
            weight_version="0.0",
        )
        for index in range(size)
    ]


def test_groups_come_back_as_they_were_appended(tmp_path: Path) -> None:
    log = SampleLog(tmp_path / "deep" / "samples.jsonl")
    log.append(_group(4))
    log.append(_group(2, size=3))
    again = SampleLog(log.path)
    assert list(again.groups()) == [_group(4), _group(2, size=3)]
    assert again.num_groups == 2
    assert again.holds(4, "p4")
    assert not again.holds(3, "p3")


@pytest.mark.parametrize("num_bytes_lost", [1, 5, 400])
def test_what_a_kill_left_of_an_unfinished_group_is_cut_off(
    tmp_path: Path, num_bytes_lost: int
) -> None:
    log = SampleLog(tmp_path / "samples.jsonl")
    log.append(_group(0))
    whole = log.path.read_bytes()
    log.append(_group(1))
    log.path.write_bytes(log.path.read_bytes()[:-num_bytes_lost])
    again = SampleLog(log.path)
    assert log.path.read_bytes() == whole
    assert not again.holds(1, "p1")
    again.append(_group(1))
    assert list(again.groups()) == [_group(0), _group(1)]


def test_a_file_of_another_run_is_refused_instead_of_counted(tmp_path: Path) -> None:
    log = SampleLog(tmp_path / "samples.jsonl")
    log.append(_group(0, prompt_id="old"))
    with pytest.raises(FatalError, match="remove it"):
        log.holds(0, "new")


def test_a_foreign_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(msgspec.json.encode(_group(0)[0]) + b"\n{}\n")
    with pytest.raises(FatalError, match=r"samples\.jsonl:2: not a sample"):
        SampleLog(path)


def test_a_copy_replaces_the_old_result(tmp_path: Path) -> None:
    log = SampleLog(tmp_path / "samples.jsonl")
    log.append(_group(0))
    target = tmp_path / "out.jsonl"
    target.write_text("old", encoding="utf-8")
    log.copy_to(target)
    assert target.read_bytes() == log.path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "samples.jsonl"]
