from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from common.config import RunPaths
from common.errors import FatalError, ModelDirectoryError
from common.messages import GroupCounts, NamedCount, Status
from common.types import WeightVersion
from deploy.local_run import has_state, named
from deploy.run_command import run
from tests.unit.deploy.test_check_command import write_model, write_run


def invoke(run_file: Path) -> None:
    CliRunner().invoke(run, [str(run_file)], catch_exceptions=False, standalone_mode=False)


def test_a_run_directory_with_state_is_refused_with_its_cure(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, write_model(tmp_path / "model", {"a": [1]}))
    journal = RunPaths(tmp_path / "out").journal
    journal.parent.mkdir(parents=True)
    journal.touch()
    with pytest.raises(FatalError, match=r"already holds a run \(add --resume to go on with it"):
        invoke(run_file)


def test_a_run_without_its_model_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match="no such directory"):
        invoke(write_run(tmp_path, tmp_path / "absent"))
    assert not (tmp_path / "out").exists()


def test_only_durable_state_makes_a_run(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.logs.mkdir()
    paths.checkpoints.mkdir(parents=True)
    assert not has_state(paths)
    (paths.checkpoints / "5").mkdir()
    assert has_state(paths)


def test_the_final_state_is_written_with_names() -> None:
    status = Status(
        run_id="a",
        groups=GroupCounts(admitted=5, trained=3, evicted=2),
        evicted=(NamedCount(name="run_end", count=2),),
        policy_step=3,
        incarnation=0,
        newest_version=WeightVersion(incarnation=0, policy_step=3),
        waiting=(),
        sealed=True,
        weight_syncs=4,
    )
    record = named(status)
    assert record["groups"] == {
        "admitted": 5,
        "trained": 3,
        "evicted": 2,
        "dead_lettered": 0,
        "leased": 0,
        "pending": 0,
    }
    assert record["evicted"] == {"run_end": 2}
    assert record["newest_version"] == "0.3"
    assert record["weight_syncs"] == 4
