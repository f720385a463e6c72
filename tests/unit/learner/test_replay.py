"""A step of a run computed again: the same weights, every token accounted for, nothing touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from common.config import Config
from common.config_loader import run_paths, to_toml
from common.errors import CheckpointError, FatalError
from learner.checkpoints.lineage import Lineage
from learner.checkpoints.resume import start_or_resume
from learner.checkpoints.step_record import read_step_record, record_path, write_step_record
from learner.cli import learner
from learner.recorder.flight_recorder import read_recording, recording_path
from learner.recorder.replay import replay, replayable_steps
from learner.recorder.replay_report import write_replay
from learner.train import take_step
from tests.unit.learner.fake_broker import FakeBroker, random_rollout
from tests.unit.learner.small_run import (
    ALONE,
    GROUP_SIZE,
    VOCAB_SIZE,
    small_broker,
    small_config,
    small_run,
    with_loss,
)

NUM_STEPS = 5


def _finished(root: Path, *, loss: dict[str, Any] | None = None, **learner_keys: Any) -> Config:
    """A run of five steps with checkpoints 2 and 4; actors were a step behind."""
    config = with_loss(small_config(root, num_steps=NUM_STEPS, **learner_keys), **(loss or {}))
    with small_run(config, small_broker(chunk_sizes=(1, 2), lag=1)) as run:
        start_or_resume(run)
        for _ in range(NUM_STEPS):
            take_step(run)
        run.settle_checkpoint()
    return config


def _snapshot(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """One run for the tests that only read it."""
    return _finished(tmp_path_factory.mktemp("replay"))


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_replayed_step_has_the_digest_of_its_record_and_leaves_the_run_as_it_was(
    config: Config, step: int
) -> None:
    directory = Path(config.run.directory)
    before = _snapshot(directory)
    replayed = replay(config, ALONE, step)
    record = read_step_record(record_path(run_paths(config).step_records, step, 0))
    assert replayed.weight_digest == record.weight_digest
    assert record.statistics is not None
    assert replayed.loss == record.statistics.loss
    assert replayed.grad_norm == record.statistics.grad_norm
    assert replayed.checkpoint == (2 if step < 4 else 4)
    assert _snapshot(directory) == before


def test_every_trained_token_has_a_row_and_their_shares_add_up_to_the_loss(config: Config) -> None:
    replayed = replay(config, ALONE, 3)
    recorded = read_recording(recording_path(run_paths(config).recordings, 3, 0, 0))
    documents = {key: item for chunk in recorded for key, item in chunk.documents.items()}
    assert len(documents) == 2 * GROUP_SIZE
    for rollout_id, document in documents.items():
        rows = [
            row
            for row in replayed.rows
            if (row.group_id, row.index) == (rollout_id.group_id, rollout_id.index)
        ]
        assert [row.token_id for row in rows] == document.completion_token_ids.tolist()
        assert [row.position for row in rows] == list(range(len(rows)))
        assert [row.behavior_logprob for row in rows] == document.behavior_logprobs.tolist()
        assert {row.advantage for row in rows} == {float(np.float32(document.advantage))}
        assert {row.lag for row in rows} == {1}
    assert sum(row.loss or 0.0 for row in replayed.rows) == pytest.approx(replayed.loss, abs=1e-6)


def test_the_gradient_of_a_token_is_its_truncated_weight_times_its_advantage(
    config: Config,
) -> None:
    """With one update and no KL: d loss / d log-prob = -min(ratio, cap) A / tokens."""
    replayed = replay(config, ALONE, 3)
    cap, count = config.learner.loss.importance_cap, len(replayed.rows)
    assert count > 20
    for row in replayed.rows:
        assert row.ratio is not None
        assert row.advantage is not None
        assert row.weight is not None
        assert row.weight == pytest.approx(min(row.ratio, cap), rel=1e-5)
        assert row.gradient == pytest.approx(-row.weight * row.advantage / count, rel=1e-5)
        assert row.capped == (row.ratio > cap)


def test_a_kl_term_and_several_updates_are_replayed_too(tmp_path: Path) -> None:
    config = _finished(
        tmp_path,
        loss={"kl_coefficient": 0.1},
        updates_per_batch=2,
        reference_reset_every=1,
    )
    replayed = replay(config, ALONE, 3)
    assert all(row.reference_logprob is not None for row in replayed.rows)
    num_rollouts = len({(row.group_id, row.index) for row in replayed.rows})
    assert num_rollouts == 2 * GROUP_SIZE
    assert {row.visit for row in replayed.rows} == {0}  # each answer is in one of the two updates


def test_a_step_without_a_way_to_it_names_those_that_have_one(config: Config) -> None:
    paths = run_paths(config)
    assert replayable_steps(paths, Lineage()) == [2, 3, 4]
    with pytest.raises(CheckpointError, match=r"step 9 cannot be replayed, 2-4 can .*raise"):
        replay(config, ALONE, 9)
    with pytest.raises(CheckpointError, match=r"step 0 cannot be replayed"):
        replay(config, ALONE, 0)


def test_only_the_newest_recordings_that_a_checkpoint_leads_to_are_kept(tmp_path: Path) -> None:
    config = _finished(tmp_path, recorded_steps=2)
    kept = sorted(path.name for path in run_paths(config).recordings.iterdir())
    assert kept == ["00000003.0.0.safetensors", "00000004.0.0.safetensors"]
    assert replayable_steps(run_paths(config), Lineage()) == [4]


def test_a_step_that_one_rank_did_not_record_cannot_be_replayed(tmp_path: Path) -> None:
    paths = run_paths(_finished(tmp_path))
    record = read_step_record(record_path(paths.step_records, 3, 0))
    write_step_record(paths.step_records, msgspec.structs.replace(record, world_size=2))
    assert replayable_steps(paths, Lineage()) == [2, 4]


def test_a_damaged_recording_is_named(tmp_path: Path) -> None:
    config = _finished(tmp_path)
    path = recording_path(run_paths(config).recordings, 4, 0, 0)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"00000004\.0\.0\.safetensors: the recording cannot"):
        replay(config, ALONE, 4)


def test_weights_that_come_out_otherwise_stop_the_replay(tmp_path: Path) -> None:
    config = _finished(tmp_path)
    path = record_path(run_paths(config).step_records, 4, 0)
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"weight_digest": "0" * 16}))
    with pytest.raises(FatalError, match="step 4 comes out with digest .* its record says 0000"):
        replay(config, ALONE, 4)


def test_the_files_of_a_replay_agree_with_each_other(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replayed = replay(config, ALONE, 3)
    write_replay(config, replayed, tmp_path / "out")
    lines = {
        name: [json.loads(line) for line in (tmp_path / f"out/{name}.jsonl").open()]
        for name in ("tokens", "rollouts", "groups")
    }
    by_pull = [rollout["pull"] for rollout in lines["rollouts"]]
    assert by_pull == sorted(by_pull, reverse=True)
    assert sum(rollout["pull_share"] for rollout in lines["rollouts"]) == pytest.approx(1.0)
    assert {rollout["reward"] for rollout in lines["rollouts"]} == {0.0, 1.0}
    for rollout in lines["rollouts"]:
        own = [
            token
            for token in lines["tokens"]
            if (token["group_id"], token["index"]) == (rollout["group_id"], rollout["index"])
        ]
        assert rollout["completion"] == "".join(token["text"] for token in own)
        assert rollout["pull"] == pytest.approx(sum(abs(token["gradient"]) for token in own))
    pulls = {group["group_id"]: group["pull"] for group in lines["groups"]}
    assert sum(pulls.values()) == pytest.approx(sum(by_pull))
    page = (tmp_path / "out/replay.html").read_text()
    assert page.count('<div class="card">') == 2 * GROUP_SIZE
    shown = capsys.readouterr().out
    assert f"weights {replayed.weight_digest} as recorded" in shown


def test_a_reward_that_pays_for_short_answers_is_seen_in_what_becomes_likelier(
    tmp_path: Path,
) -> None:
    """The example of docs/debugging.md: the sign of the pull follows length, not correctness."""
    sample = random_rollout(VOCAB_SIZE)

    def brief(group_id: int, index: int) -> float:
        return 2.0 - len(sample(group_id, index).completion_token_ids) / 10

    config = small_config(tmp_path, checkpoint_every=1)
    with small_run(config, FakeBroker(sample, GROUP_SIZE, reward=brief)) as run:
        start_or_resume(run)
        take_step(run)
        run.settle_checkpoint()
    write_replay(config, replay(config, ALONE, 0), tmp_path / "out")
    rollouts = [json.loads(line) for line in (tmp_path / "out/rollouts.jsonl").open()]
    for group_id in (0, 1):
        own = [item for item in rollouts if item["group_id"] == group_id]
        mean = sum(item["num_tokens"] for item in own) / len(own)
        assert len(own) == GROUP_SIZE
        for item in own:
            assert (item["gradient"] < 0) == (item["num_tokens"] < mean)
            assert item["reward"] == pytest.approx(2.0 - item["num_tokens"] / 10)


def test_the_command_writes_where_it_is_told_and_says_so_when_it_cannot(
    config: Config, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(to_toml(config))
    arguments = [str(tmp_path / "run.toml"), "--replay"]
    done = CliRunner().invoke(learner, [*arguments, "4", "--out", str(tmp_path / "found")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "found/tokens.jsonl").stat().st_size > 0
    missing = CliRunner().invoke(learner, [*arguments, "7", "--out", str(tmp_path / "none")])
    assert missing.exit_code == 1
    assert not (tmp_path / "none").exists()
