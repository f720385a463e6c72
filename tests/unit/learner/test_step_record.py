"""Step records come back as written, in order, and damaged ones are not guessed at."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from common.errors import CheckpointError
from common.types import RolloutId
from learner.batches.layout import ChunkLayout, MicrobatchLayout
from learner.checkpoints.step_record import (
    StepRecord,
    has_records_beyond,
    read_step_record,
    record_path,
    records_after,
    write_step_record,
)

_ROW = (RolloutId(group_id=4, index=0, attempt=1), RolloutId(group_id=4, index=1, attempt=2))
_LAYOUT = ChunkLayout(group_ids=(4,), ranks=((MicrobatchLayout(row_length=9, rows=(_ROW,)),), ()))


def _record(policy_step: int, incarnation: int = 0) -> StepRecord:
    return StepRecord(
        incarnation=incarnation,
        policy_step=policy_step,
        group_ids=(4,),
        chunks=(_LAYOUT,),
        world_size=2,
        weight_digest="00112233aabbccdd",
    )


def test_a_record_comes_back_as_written(tmp_path: Path) -> None:
    write_step_record(tmp_path / "steps", _record(7))
    assert read_step_record(record_path(tmp_path / "steps", 7, 0)) == _record(7)


def test_records_are_read_up_to_the_first_gap(tmp_path: Path) -> None:
    for policy_step in (2, 3, 5):
        write_step_record(tmp_path, _record(policy_step))
    assert [record.policy_step for record in records_after(tmp_path, 2, 0)] == [2, 3]
    assert has_records_beyond(tmp_path, 4, 0)
    assert not has_records_beyond(tmp_path, 6, 0)


def test_incarnations_do_not_mix(tmp_path: Path) -> None:
    write_step_record(tmp_path, _record(2, incarnation=0))
    write_step_record(tmp_path, _record(2, incarnation=1))
    assert records_after(tmp_path, 2, 1) == [_record(2, incarnation=1)]
    assert records_after(tmp_path, 2, 0) == [_record(2, incarnation=0)]
    assert records_after(tmp_path, 2, 2) == []


@pytest.mark.parametrize("text", ["", "{}", '{"incarnation": 0, "policy_step": -1}'])
def test_a_damaged_record_is_named_with_its_cure(tmp_path: Path, text: str) -> None:
    path = record_path(tmp_path, 0, 0)
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"00000000\.0\.json.*delete it to go on"):
        read_step_record(path)


def test_unknown_fields_are_refused(tmp_path: Path) -> None:
    path = record_path(tmp_path, 0, 0)
    fields = msgspec.to_builtins(_record(0)) | {"surprise": 1}
    path.write_bytes(msgspec.json.encode(fields))
    with pytest.raises(CheckpointError, match="surprise"):
        read_step_record(path)


def test_a_directory_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("a file")
    with pytest.raises(CheckpointError, match="no step is lost"):
        write_step_record(tmp_path / "steps", _record(0))
