"""Trackers are given the numbers of a step, and cost nothing when they fail."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import sqlite3
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.config import Config
from common.config_loader import run_paths, to_toml
from common.errors import ConfigError
from common.trackers import tracker_problems
from deploy.check_command import check
from learner.checkpoints.resume import start_or_resume
from learner.metrics.trackers import PROJECT, Trackers, flat_numbers, run_identity
from learner.train import take_step, train
from tests.unit.learner.small_run import (
    ALONE,
    RecordingPublisher,
    small_broker,
    small_config,
    small_model,
    small_process,
    small_run,
)


def _config(root: Path, *trackers: str) -> Config:
    return small_config(root, trackers=trackers, num_steps=3)


def _rows(config: Config) -> list[dict[str, Any]]:
    lines = (run_paths(config).telemetry / "steps.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_numbers_of_tables_are_named_by_their_way() -> None:
    row = {"loss": 1, "by_lag": {"0": {"kl": 0.5}}, "word": "x", "flag": True, "none": None}
    assert dict(flat_numbers(row)) == {"loss": 1.0, "by_lag/0/kl": 0.5}


def test_tensorboard_reads_back_what_steps_said_across_a_restart(tmp_path: Path) -> None:
    config = _config(tmp_path, "tensorboard")
    broker = small_broker()
    for _ in range(2):
        with small_run(config, broker) as run:
            start_or_resume(run)
            take_step(run)
            assert run.telemetry is not None
            run.telemetry.close()
    events = EventAccumulator(str(run_paths(config).telemetry / "tensorboard"))
    events.Reload()
    rows = _rows(config)
    assert [row["policy_step"] for row in rows] == [0, 1]
    for tag in ("loss", "entropy", "reward_mean", "importance_ratio_p99", "loss_policy"):
        found = {point.step: point.value for point in events.Scalars(tag)}
        assert found == pytest.approx({row["policy_step"]: row[tag] for row in rows}, rel=1e-5)
    assert "by_lag/0/kl" in events.Tags()["scalars"]
    assert "seconds/compute" in events.Tags()["scalars"]


@pytest.mark.slow
def test_wandb_offline_keeps_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = _config(tmp_path, "wandb")
    with small_run(config) as run:
        for _ in range(2):
            take_step(run)
        assert run.telemetry is not None
        run.telemetry.close()
    (path,) = (run_paths(config).telemetry / "wandb").glob(
        f"offline-run-*/run-{run_identity(config)}.wandb"
    )
    assert _history(path) == [
        {"_step": row["policy_step"], "loss": row["loss"]} for row in _rows(config)
    ]


def _history(path: Path) -> list[dict[str, float]]:
    """Steps and losses of the history in an offline run's file."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for data in _log_records(path.read_bytes()[7:]):
        record: Any = vars(wandb_internal_pb2)["Record"]()  # made at import
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            found.append({"_step": int(values["_step"]), "loss": values["loss"]})
    return found


def _log_records(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log: blocks of 32 KiB, pieces with checksum, length and kind."""
    place, whole = 7, b""  # the file's own header takes the first bytes of its first block
    while place - 7 + 7 <= len(data):
        left = (1 << 15) - place % (1 << 15)
        if left < 7:
            place += left
            continue
        at = place - 7
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full or last
            yield whole
            whole = b""


@pytest.mark.slow
def test_trackio_keeps_every_step_of_a_run_and_its_resumption_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # it reads its settings when it is imported
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    called: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: called.append(address))
    config, broker = _config(tmp_path, "trackio"), small_broker()
    for _ in range(2):
        with small_run(config, broker) as run:
            start_or_resume(run)
            take_step(run)
            assert run.telemetry is not None
            run.telemetry.close()
    assert called == []
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / f"{PROJECT}.db")) as database:
        kept = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step")
        found = [(name, step, json.loads(values)["loss"]) for name, step, values in kept]
        (run_ids,) = database.execute("SELECT count(DISTINCT run_id) FROM metrics")
    name = run_identity(config)
    assert found == [(name, row["policy_step"], row["loss"]) for row in _rows(config)]
    assert run_ids == (1,), "the resumed run is the same run"


class _FakeTrackio(types.ModuleType):
    """What trackio has in common with wandb."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        super().__init__("trackio")
        self.calls: list[tuple[str, object]] = []
        self._fails_at = fails_at

    def init(self, **options: object) -> None:
        self.calls.append(("init", options["name"]))

    def log(self, values: dict[str, float], *, step: int) -> None:
        if step == self._fails_at:
            raise ConnectionError("no way to the\nserver")
        self.calls.append(("log", step))

    def finish(self) -> None:
        self.calls.append(("finish", None))


def test_trackio_is_started_with_the_first_step_and_ended_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", module)
    config = _config(tmp_path, "trackio")
    with small_process(config) as process:
        trackers = Trackers(config, process.paths, process.log)
        assert module.calls == []
        trackers.log_step(0, {"loss": 1.0})
        trackers.log_step(1, {"loss": 2.0})
        trackers.close()
    name = run_identity(config)
    assert module.calls == [("init", name), ("log", 0), ("log", 1), ("finish", None)]


def test_a_tracker_that_fails_is_left_out_and_the_step_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _FakeTrackio(fails_at=1)
    monkeypatch.setitem(sys.modules, "trackio", module)
    config = _config(tmp_path, "trackio")
    with small_run(config) as run:
        for _ in range(3):
            take_step(run)
    assert [call for call in module.calls if call[0] == "log"] == [("log", 0)]
    assert len(_rows(config)) == 3


def test_a_tracker_that_is_not_installed_is_an_error_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.trackers.find_spec", lambda name: None)
    config = _config(tmp_path, "trackio")
    (problem,) = tracker_problems(config)
    assert "pip install 'headrace[trackio]'" in str(problem)
    small_model(tmp_path / "model")
    with small_process(config) as process, pytest.raises(ConfigError, match="learner.trackers"):
        train(process, small_broker(), ALONE, RecordingPublisher())
    (tmp_path / "run.toml").write_text(to_toml(config))
    done = CliRunner().invoke(check, [str(tmp_path / "run.toml")])
    assert done.exit_code == 1
    assert '"trackio" is not (pip install' in done.output


def test_runs_of_one_name_in_two_places_have_two_identities(tmp_path: Path) -> None:
    first, second = _config(tmp_path / "a"), _config(tmp_path / "b")
    assert run_identity(first) != run_identity(second)
    assert run_identity(first) == run_identity(dataclasses.replace(first))
