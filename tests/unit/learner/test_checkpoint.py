"""Checkpoints come back bit for bit, appear whole, and never cost an older one."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import CheckpointError
from learner.checkpoint import newest_checkpoint, read_state
from learner.run_state import TrainingRun
from learner.train import take_step
from tests.unit.learner.small_run import small_config, small_run, weights_of


def _moments(run: TrainingRun) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{moment}": run.optimizer.state[weight][moment].clone()
        for name, weight in run.policy.named_weights()
        for moment in ("exp_avg", "exp_avg_sq", "step")
    }


def _steps(run: TrainingRun, count: int) -> None:
    for _ in range(count):
        take_step(run)


def test_weights_and_moments_come_back_bit_for_bit(tmp_path: Path) -> None:
    config = small_config(tmp_path, checkpoint_every=100)
    with small_run(config) as run:
        _steps(run, 2)
        run.checkpoint()
        weights, moments = weights_of(run.policy), _moments(run)
    with small_run(config) as fresh:
        fresh.restore(2)
        assert fresh.policy_step == 2
        for name, weight in weights_of(fresh.policy).items():
            assert torch.equal(weight, weights[name]), name
        for name, moment in _moments(fresh).items():
            assert torch.equal(moment, moments[name]), name


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    config = small_config(tmp_path, checkpoint_every=1, keep_checkpoints=2)
    with small_run(config) as run:
        _steps(run, 4)
        directory = run.process.paths.checkpoints
    assert sorted(path.name for path in directory.iterdir()) == ["00000003", "00000004"]
    assert newest_checkpoint(directory) == 4


def test_the_state_says_what_the_checkpoint_is(tmp_path: Path) -> None:
    with small_run(small_config(tmp_path)) as run:
        run.checkpoint()
        path = run.process.paths.checkpoints / "00000000"
        digest = run.digest()
    state = read_state(path)
    assert (state.policy_step, state.incarnation, state.world_size) == (0, 0, 1)
    assert state.weight_digest == digest
    assert state.file_bytes == {
        file.name: file.stat().st_size for file in path.glob("*.safetensors")
    }


def test_a_full_disk_is_one_clear_error_and_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_run(small_config(tmp_path, checkpoint_every=100)) as run:
        run.checkpoint()
        _steps(run, 1)

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("learner.checkpoint.dcp.save", full)
        with pytest.raises(CheckpointError, match=r"No space left on device \(free space"):
            run.checkpoint()
        directory = run.process.paths.checkpoints
        assert [path.name for path in directory.iterdir()] == ["00000000"]
        assert newest_checkpoint(directory) == 0


@pytest.mark.parametrize("damage", ["truncate", "remove", "no-state", "torn-state"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    with small_run(small_config(tmp_path, checkpoint_every=1)) as run:
        _steps(run, 2)
        directory = run.process.paths.checkpoints
    newest = directory / "00000002"
    (tensors,) = newest.glob("*.safetensors")
    if damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:-1])
    elif damage == "remove":
        tensors.unlink()
    elif damage == "no-state":
        (newest / "state.json").unlink()
    else:
        (newest / "state.json").write_text('{"policy_step": 2')
    assert newest_checkpoint(directory) == 1


def test_an_unfinished_checkpoint_does_not_count_and_is_cleared(tmp_path: Path) -> None:
    with small_run(small_config(tmp_path)) as run:
        directory = run.process.paths.checkpoints
        (directory / "00000007.incomplete").mkdir(parents=True)
        assert newest_checkpoint(directory) is None
        run.checkpoint()
    assert [path.name for path in directory.iterdir()] == ["00000000"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    with small_run(config) as run:
        run.checkpoint()
        path = run.process.paths.checkpoints / "00000000" / "state.json"
    path.write_text(path.read_text().replace(run.digest(), "0" * 16))
    with (
        small_run(config) as other,
        pytest.raises(CheckpointError, match="the checkpoint says 0000000000000000"),
    ):
        other.restore(0)
