"""A learner killed at any moment arrives at the same bits as one that was left alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from common.config import Config
from common.errors import CheckpointError
from common.types import WeightVersion
from learner.batches.group_source import Ending
from learner.checkpoints.checkpoint import read_state
from learner.checkpoints.lineage import read_lineage
from learner.checkpoints.step_record import StepRecord, read_step_record, record_path
from learner.models.reference import Reference
from learner.train import train
from tests import builders
from tests.unit.learner.fake_broker import FakeBroker, Killed
from tests.unit.learner.reference_models import ReferenceModels
from tests.unit.learner.small_run import (
    ALONE,
    RecordingPublisher,
    small_broker,
    small_config,
    small_model,
    small_process,
    with_loss,
)

NUM_STEPS = 5


def _config(root: Path) -> Config:
    return small_config(root, num_steps=NUM_STEPS, checkpoint_every=2)


def _broker() -> FakeBroker:
    return small_broker(chunk_sizes=(1, 2))


def _run_once(config: Config, broker: FakeBroker, publisher: RecordingPublisher) -> Ending:
    with small_process(config) as process:
        return train(process, broker, ALONE, publisher)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def undisturbed(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[WeightVersion, str], dict[str, torch.Tensor], int]:
    """Digests of all versions, final weights and the number of requests of an unkilled run."""
    root = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(model, root / "model")
    publisher, broker = RecordingPublisher(), _broker()
    assert _run_once(_config(root), broker, publisher) is Ending.COMPLETED
    return publisher.published, load_file(root / "run/model/model.safetensors"), len(broker.log)


def _finish(config: Config, broker: FakeBroker, publisher: RecordingPublisher) -> int:
    """Start the learner until it is done; returns how often it was killed."""
    for num_kills in range(20):
        try:
            assert _run_once(config, broker, publisher) is Ending.COMPLETED
            return num_kills
        except Killed:
            publisher.on_publish = None
    raise AssertionError("the learner never finished")


def _check_same(
    root: Path,
    publisher: RecordingPublisher,
    undisturbed: tuple[dict[WeightVersion, str], dict[str, torch.Tensor], int],
) -> None:
    versions, weights, _ = undisturbed
    for version, digest in publisher.published.items():
        assert versions[version] == digest
    final = load_file(root / "run/model/model.safetensors")
    assert final.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(final[name], weight), name
    rows = (root / "run/telemetry/steps.jsonl").read_text().splitlines()
    assert sorted(json.loads(row)["policy_step"] for row in rows) == list(range(NUM_STEPS))


@pytest.mark.parametrize("share", [step / 12 for step in range(12)])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_a_request_it_resumes_to_the_same_bits(
    tmp_path: Path,
    model: Path,
    undisturbed: tuple[dict[WeightVersion, str], dict[str, torch.Tensor], int],
    share: float,
    when: str,
) -> None:
    shutil.copytree(model, tmp_path / "model")
    broker, publisher = _broker(), RecordingPublisher()
    broker.kill_at = 1 + int(share * undisturbed[2])
    broker.kill_after_effect = when == "after"
    assert _finish(_config(tmp_path), broker, publisher) == 1
    _check_same(tmp_path, publisher, undisturbed)
    assert len(broker.trained) == NUM_STEPS * 2
    assert broker.incarnation == 0


@pytest.mark.parametrize("policy_step", range(NUM_STEPS + 1))
def test_killed_between_commit_and_publication_it_resumes_to_the_same_bits(
    tmp_path: Path,
    model: Path,
    undisturbed: tuple[dict[WeightVersion, str], dict[str, torch.Tensor], int],
    policy_step: int,
) -> None:
    shutil.copytree(model, tmp_path / "model")

    def kill(version: WeightVersion) -> None:
        if version.policy_step == policy_step:
            raise Killed

    broker, publisher = _broker(), RecordingPublisher(on_publish=kill)
    assert _finish(_config(tmp_path), broker, publisher) == 1
    _check_same(tmp_path, publisher, undisturbed)


@pytest.mark.parametrize("policy_step", [1, 3, 4])
def test_published_weights_are_made_again_even_if_groups_would_now_come_in_another_order(
    tmp_path: Path, model: Path, policy_step: int
) -> None:
    broker = _kill_at_version(tmp_path, model, policy_step)
    broker.chunk_sizes = (2,)
    broker.waiting.reverse()
    publisher = RecordingPublisher()
    assert _run_once(_config(tmp_path), broker, publisher) is Ending.COMPLETED
    steps = tmp_path / "run/learner/steps"
    expected = read_step_record(record_path(steps, policy_step - 1, 0)).weight_digest
    assert publisher.published[WeightVersion(incarnation=0, policy_step=policy_step)] == expected
    assert broker.incarnation == 0


def test_a_killed_learner_replays_a_step_under_the_masks_it_was_taken_with(
    tmp_path: Path, model: Path
) -> None:
    def masks(group_id: int, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (0, 2), (group_id % 2,) if index else ()

    published = []
    for name, killed_at in (("alone", None), ("killed", 3)):
        shutil.copytree(model, tmp_path / name / "model")
        broker = small_broker(chunk_sizes=(1, 2), masks=masks)
        publisher = RecordingPublisher(
            on_publish=None if killed_at is None else _stop_at(killed_at)
        )
        num_kills = _finish(_config(tmp_path / name), broker, publisher)
        assert num_kills == (killed_at is not None)
        assert broker.incarnation == 0, "the replay came to other weights"
        published.append(publisher.published)
    alone, killed = published
    assert killed.items() <= alone.items()
    rows = (tmp_path / "killed/run/telemetry/steps.jsonl").read_text().splitlines()
    assert all(json.loads(row)["num_masked_tokens"] > 0 for row in rows)


def _stop_at(policy_step: int) -> Callable[[WeightVersion], None]:
    def kill(version: WeightVersion) -> None:
        if version.policy_step == policy_step:
            raise Killed

    return kill


def _kill_at_version(root: Path, model: Path, policy_step: int) -> FakeBroker:
    shutil.copytree(model, root / "model")
    broker = _broker()
    with pytest.raises(Killed):
        _run_once(_config(root), broker, RecordingPublisher(on_publish=_stop_at(policy_step)))
    return broker


def _change_record(path: Path, **fields: object) -> None:
    record: StepRecord = msgspec.structs.replace(read_step_record(path), **fields)
    path.write_bytes(msgspec.json.encode(record))


def test_weights_that_cannot_be_reproduced_open_a_new_incarnation(
    tmp_path: Path, model: Path
) -> None:
    broker = _kill_at_version(tmp_path, model, 4)  # checkpoint 2, records 2 and 3
    steps = tmp_path / "run/learner/steps"
    _change_record(record_path(steps, 3, 0), weight_digest="0" * 16)
    publisher = RecordingPublisher()
    assert _run_once(_config(tmp_path), broker, publisher) is Ending.COMPLETED
    assert [str(version) for version in publisher.published] == ["1.2", "1.3", "1.4", "1.5"]
    assert broker.incarnation == 1
    lineage = read_lineage(tmp_path / "run/learner/lineage.json")
    assert lineage.incarnation == 1
    # sampled at 4 of the lost branch, trained at 3: two steps back to the fork and one forward
    assert lineage.lag(WeightVersion(incarnation=0, policy_step=4), 3) == 3
    assert record_path(steps, 3, 0).exists(), "the lost branch stays on record"
    assert record_path(steps, 3, 1).exists()


def test_another_number_of_ranks_cannot_repeat_a_record(tmp_path: Path, model: Path) -> None:
    broker = _kill_at_version(tmp_path, model, 3)
    _change_record(record_path(tmp_path / "run/learner/steps", 2, 0), world_size=2)
    publisher = RecordingPublisher()
    assert _run_once(_config(tmp_path), broker, publisher) is Ending.COMPLETED
    assert min(publisher.published) == WeightVersion(incarnation=1, policy_step=2)


def test_groups_that_the_broker_has_lost_open_a_new_incarnation(
    tmp_path: Path, model: Path
) -> None:
    broker = _kill_at_version(tmp_path, model, 3)
    broker.trained |= {*broker.stepped[2]}
    publisher = RecordingPublisher()
    assert _run_once(_config(tmp_path), broker, publisher) is Ending.COMPLETED
    assert min(publisher.published) == WeightVersion(incarnation=1, policy_step=2)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_it(
    tmp_path: Path, model: Path
) -> None:
    broker = _kill_at_version(tmp_path, model, 5)
    newest = tmp_path / "run/learner/checkpoints/00000004"
    (tensors,) = newest.glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1])
    publisher = RecordingPublisher()
    assert _run_once(_config(tmp_path), broker, publisher) is Ending.COMPLETED
    # its groups are trained at the broker and their payloads gone, so step 4 cannot be repeated
    assert min(publisher.published) == WeightVersion(incarnation=1, policy_step=2)


def test_flipped_bits_in_a_checkpoint_are_not_trained_on(tmp_path: Path, model: Path) -> None:
    broker = _kill_at_version(tmp_path, model, 5)
    newest = tmp_path / "run/learner/checkpoints/00000004"
    (tensors,) = newest.glob("*.safetensors")
    data = bytearray(tensors.read_bytes())
    data[-5] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"has checksum .*\(delete .*00000004 to go on"):
        _run_once(_config(tmp_path), broker, RecordingPublisher())


def test_without_any_checkpoint_left_the_run_is_not_started_anew(
    tmp_path: Path, model: Path
) -> None:
    broker = _kill_at_version(tmp_path, model, 3)
    shutil.rmtree(tmp_path / "run/learner/checkpoints")
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        _run_once(_config(tmp_path), broker, RecordingPublisher())


def test_a_broker_that_is_behind_the_checkpoint_is_refused(tmp_path: Path, model: Path) -> None:
    broker = _kill_at_version(tmp_path, model, 5)  # checkpoint 4
    broker.policy_step = 3
    with pytest.raises(
        CheckpointError,
        match=r"00000004: it holds 4 steps, but the broker's journal only 3.*restore",
    ):
        _run_once(_config(tmp_path), broker, RecordingPublisher())


def test_an_older_copy_of_the_journal_is_refused_though_it_has_the_steps(
    tmp_path: Path, model: Path
) -> None:
    broker = _kill_at_version(tmp_path, model, 5)
    checkpoint = tmp_path / "run/learner/checkpoints/00000004"
    known = read_state(checkpoint).num_journal_events
    assert known == broker.num_events - 2, "checkpoint 4 was committed and one step taken since"
    broker.num_events = known - 1
    with pytest.raises(CheckpointError, match="00000004: the journal is an older copy"):
        _run_once(_config(tmp_path), broker, RecordingPublisher())
    broker.num_events = known
    assert _run_once(_config(tmp_path), broker, RecordingPublisher()) is Ending.COMPLETED
    newest = read_state(tmp_path / "run/learner/checkpoints/00000005")
    assert newest.num_journal_events > known


def test_a_fork_is_refused_too_where_the_journal_is_an_older_copy(
    tmp_path: Path, model: Path
) -> None:
    broker = _kill_at_version(tmp_path, model, 4)
    record_path(tmp_path / "run/learner/steps", 2, 0).unlink()  # step 3 cannot be reached
    broker.num_events = 0
    with pytest.raises(CheckpointError, match="00000002: the journal is an older copy"):
        _run_once(_config(tmp_path), broker, RecordingPublisher())


def test_a_broker_of_another_run_is_refused(tmp_path: Path, model: Path) -> None:
    broker = _kill_at_version(tmp_path, model, 5)
    broker.run_id = "other"
    with pytest.raises(CheckpointError, match="it is of run run, the broker's journal of other"):
        _run_once(_config(tmp_path), broker, RecordingPublisher())


def test_a_new_run_from_an_exported_model_starts_at_exactly_its_weights(
    tmp_path: Path, model: Path
) -> None:
    shutil.copytree(model, tmp_path / "old" / "model")
    old, new = RecordingPublisher(), RecordingPublisher()
    assert _run_once(_config(tmp_path / "old"), _broker(), old) is Ending.COMPLETED
    shutil.copytree(tmp_path / "old/run/model", tmp_path / "new" / "model")
    new.on_publish = _stop_at(1)
    with pytest.raises(Killed):
        _run_once(_config(tmp_path / "new"), _broker(), new)
    assert new.published[builders.version(0)] == old.published[builders.version(NUM_STEPS)]


def test_a_stopped_learner_checkpoints_and_a_later_start_goes_on(
    tmp_path: Path,
    model: Path,
    undisturbed: tuple[dict[WeightVersion, str], dict[str, torch.Tensor], int],
) -> None:
    shutil.copytree(model, tmp_path / "model")
    broker, publisher = _broker(), RecordingPublisher()
    config = _config(tmp_path)
    with small_process(config) as process:

        def stop(version: WeightVersion) -> None:
            if version.policy_step == 3:
                process.stop.set("SIGTERM")

        publisher.on_publish = stop
        assert train(process, broker, ALONE, publisher) is Ending.STOPPED
    assert not broker.ended
    assert broker.checkpoint_step == 3
    publisher.on_publish = None
    assert _run_once(config, broker, publisher) is Ending.COMPLETED
    assert broker.ended
    _check_same(tmp_path, publisher, undisturbed)


def test_used_up_prompts_end_the_run(tmp_path: Path, model: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    broker = small_broker(num_groups=5)
    assert _run_once(_config(tmp_path), broker, RecordingPublisher()) is Ending.EXHAUSTED
    assert broker.ended
    assert broker.trained == {0, 1, 2, 3}
    assert (tmp_path / "run/model/config.json").is_file()


def test_telemetry_has_one_strict_json_line_a_step(tmp_path: Path, model: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    _run_once(_config(tmp_path), _broker(), RecordingPublisher())
    lines = (tmp_path / "run/telemetry/steps.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in lines]
    assert [row["policy_step"] for row in rows] == list(range(NUM_STEPS))
    assert all(row["reward_mean"] == row["accuracy_mean"] == 0.5 for row in rows)
    assert all(sum(row["lag_histogram"].values()) == row["num_tokens"] for row in rows)
    assert {"wait", "compute", "step", "commit", "publish", "publish_wait"} <= {
        *rows[-1]["seconds"]
    }
    shown = (tmp_path / "run/telemetry/rollouts.jsonl").read_text().splitlines()
    assert len(shown) == 2 * NUM_STEPS  # a rollout of each group, at most four
    assert json.loads(shown[0])["prompt"] == "1+2="


def _reference_run(root: Path, model: Path, side: str) -> tuple[Config, FakeBroker]:
    """A run with a KL term whose reference becomes the policy every second step."""
    shutil.copytree(model, root / "model")
    config = small_config(
        root, num_steps=NUM_STEPS, checkpoint_every=3, reference=side, reference_reset_every=2
    )
    config = with_loss(config, kl_coefficient=0.5)
    reference = ReferenceModels(config) if side == "verifier" else None
    return config, small_broker(chunk_sizes=(1, 2), reference=reference)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["learner", "verifier"])
def test_killed_around_a_reset_it_resumes_to_the_same_bits(
    tmp_path: Path, model: Path, side: str
) -> None:
    config, broker = _reference_run(tmp_path / "alone", model, side)
    alone = RecordingPublisher()
    assert _run_once(config, broker, alone) is Ending.COMPLETED
    num_requests = len(broker.log)
    for fifth, after in ((2, False), (3, True), (4, True)):
        config, broker = _reference_run(tmp_path / str(fifth), model, side)
        broker.kill_at, broker.kill_after_effect = 1 + fifth * num_requests // 5, after
        publisher = RecordingPublisher()
        assert _finish(config, broker, publisher) == 1
        assert broker.incarnation == 0, "the replay came to other weights"
        assert publisher.published.items() <= alone.published.items()
        assert max(publisher.published) == max(alone.published)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["learner", "verifier"])
def test_killed_between_the_commit_and_the_reset_it_resumes_to_the_same_bits(
    tmp_path: Path, model: Path, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, broker = _reference_run(tmp_path / "alone", model, side)
    alone = RecordingPublisher()
    assert _run_once(config, broker, alone) is Ending.COMPLETED
    config, broker = _reference_run(tmp_path / "killed", model, side)
    become, num_resets = Reference.become, 0

    def dies(self: Reference, *arguments: Any) -> None:
        nonlocal num_resets
        num_resets += 1
        if num_resets == 2:
            raise Killed
        become(self, *arguments)

    monkeypatch.setattr(Reference, "become", dies)
    publisher = RecordingPublisher()
    assert _finish(config, broker, publisher) == 1
    assert broker.incarnation == 0
    assert publisher.published.items() <= alone.published.items()


@pytest.mark.slow
@pytest.mark.parametrize("side", ["learner", "verifier"])
def test_a_fork_goes_back_to_the_reference_of_its_checkpoint(
    tmp_path: Path, model: Path, side: str
) -> None:
    config, broker = _reference_run(tmp_path, model, side)
    with pytest.raises(Killed):
        _run_once(config, broker, RecordingPublisher(on_publish=_stop_at(5)))
    steps = tmp_path / "run/learner/steps"  # checkpoint 3, records 3 and 4, resets at 2 and 4
    assert read_step_record(record_path(steps, 4, 0)).reference_version == builders.version(4)
    _change_record(record_path(steps, 4, 0), weight_digest="0" * 16)
    publisher = RecordingPublisher()
    assert _run_once(config, broker, publisher) is Ending.COMPLETED
    assert [str(found) for found in publisher.published] == ["1.3", "1.4", "1.5"]
    records = [read_step_record(record_path(steps, step, 1)) for step in (3, 4)]
    assert [record.reference_version for record in records] == [
        builders.version(2),
        builders.version(4, 1),
    ]


@pytest.mark.slow
def test_a_step_is_not_replayed_with_another_reference_than_it_was_taken_with(
    tmp_path: Path, model: Path
) -> None:
    config, broker = _reference_run(tmp_path, model, "verifier")
    with pytest.raises(Killed):
        _run_once(config, broker, RecordingPublisher(on_publish=_stop_at(5)))
    broker.references[broker.stepped[4][0]] = builders.version(2)
    publisher = RecordingPublisher()
    assert _run_once(config, broker, publisher) is Ending.COMPLETED
    assert min(publisher.published) == builders.version(3, 1)
