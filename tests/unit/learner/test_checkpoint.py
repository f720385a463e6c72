"""Checkpoints come back bit for bit, appear whole, and never cost an older one."""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import CheckpointError
from learner.checkpoints.checkpoint import newest_checkpoint, read_state
from learner.checkpoints.checkpoint_tensors import FileEntry, write_tensors
from learner.checkpoints.resume import start_or_resume
from learner.run_state import TrainingRun
from learner.train import take_step
from tests.unit.learner.small_run import small_broker, small_config, small_run, weights_of


def _moments(run: TrainingRun) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{moment}": run.optimizer.state[weight][moment].clone()
        for name, weight in run.policy.trained_weights()
        for moment in ("exp_avg", "exp_avg_sq", "step")
    }


def _steps(run: TrainingRun, count: int) -> None:
    for _ in range(count):
        take_step(run)
    run.settle_checkpoint()


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
    assert {name: entry.num_bytes for name, entry in state.files.items()} == {
        file.name: file.stat().st_size for file in path.glob("*.safetensors")
    }


def _full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_clear_error_and_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_run(small_config(tmp_path, checkpoint_every=100)) as run:
        run.checkpoint()
        _steps(run, 1)
        monkeypatch.setattr("learner.checkpoints.checkpoint_writer.write_tensors", _full_disk)
        with pytest.raises(CheckpointError, match=r"No space left on device \(free space"):
            run.checkpoint()
        directory = run.process.paths.checkpoints
        assert [path.name for path in directory.iterdir()] == ["00000000"]
        assert newest_checkpoint(directory) == 0


def test_training_goes_on_over_a_full_disk_and_recovers_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = small_broker()
    with small_run(small_config(tmp_path, checkpoint_every=1), broker) as run:
        run.checkpoint()
        with monkeypatch.context() as full:
            full.setattr("learner.checkpoints.checkpoint_writer.write_tensors", _full_disk)
            _steps(run, 2)
        assert (run.policy_step, run.saved_step, broker.checkpoint_step) == (2, 0, 0)
        registry = run.process.metrics.registry
        assert registry.get_sample_value("headrace_checkpoint_failures_total") == 2
        _steps(run, 1)
        assert (run.saved_step, broker.checkpoint_step) == (3, 3)
        assert run.num_failed_checkpoints == 0


def test_so_many_failures_in_a_row_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path, checkpoint_every=1, max_failed_checkpoints=2)
    with small_run(config) as run:
        run.checkpoint()
        monkeypatch.setattr("learner.checkpoints.checkpoint_writer.write_tensors", _full_disk)
        _steps(run, 1)
        with pytest.raises(CheckpointError, match="older checkpoints and the step records are"):
            _steps(run, 1)


def test_a_file_that_reads_back_otherwise_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_run(small_config(tmp_path)) as run:
        monkeypatch.setattr(
            "learner.checkpoints.checkpoint_tensors.file_checksum", lambda _: "0" * 32
        )
        with pytest.raises(CheckpointError, match="does not hold what was written"):
            run.checkpoint()
        assert newest_checkpoint(run.process.paths.checkpoints) is None


def test_what_is_written_is_the_state_at_the_step_boundary_and_training_goes_on_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, write = threading.Event(), write_tensors

    def when_let(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileEntry:
        assert gate.wait(30)
        return write(path, tensors)

    broker = small_broker()
    config = small_config(tmp_path, checkpoint_every=100)
    with small_run(config, broker) as run:
        run.checkpoint()
        _steps(run, 1)
        monkeypatch.setattr("learner.checkpoints.checkpoint_writer.write_tensors", when_let)
        expected, moments = weights_of(run.policy), _moments(run)
        run.begin_checkpoint()
        for _ in range(2):
            take_step(run)
        assert (run.policy_step, run.writer.step, broker.checkpoint_step) == (3, 1, 0)
        assert newest_checkpoint(run.process.paths.checkpoints) == 0
        gate.set()
        run.settle_checkpoint()
        assert broker.checkpoint_step == 1
        assert "checkpoint_wait" in run.stopwatch.seconds
    with small_run(config) as fresh:
        fresh.restore(1)
        for name, weight in weights_of(fresh.policy).items():
            assert torch.equal(weight, expected[name]), name
        for name, moment in _moments(fresh).items():
            assert torch.equal(moment, moments[name]), name


def test_the_broker_hears_of_a_checkpoint_at_the_next_step(tmp_path: Path) -> None:
    broker = small_broker()
    with small_run(small_config(tmp_path, checkpoint_every=100), broker) as run:
        _steps(run, 1)
        run.begin_checkpoint()
        (thread,) = [item for item in threading.enumerate() if item.name == "checkpoint"]
        thread.join()
        assert broker.checkpoint_step == 0
        take_step(run)
        assert broker.checkpoint_step == 1
        run.settle_checkpoint()
    assert broker.log.count("CommitCheckpoint") == 1


def test_a_checkpoint_of_another_format_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    with small_run(small_config(tmp_path, checkpoint_every=1)) as run:
        _steps(run, 2)
        directory = run.process.paths.checkpoints
        (directory / "00000002/state.json").write_text('{"policy_step":2,"file_bytes":{}}')
        with pytest.raises(CheckpointError, match=r"must have format 2, this one has 1 \(finish"):
            newest_checkpoint(directory)


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
        start_or_resume(run)
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
