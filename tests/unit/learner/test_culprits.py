"""Of a batch that is not finite, the groups to blame are found and named, and only they."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from common.arrays import Float32Array
from common.errors import FatalError
from common.types import RolloutId
from learner.batches.batch import Document
from learner.batches.chunk import Chunk
from learner.checkpoints.step_record import StepStatistics, read_step_record, record_path
from learner.health.culprits import find_culprits, without_groups
from learner.health.findings import Finding
from learner.run_state import TrainingRun
from learner.step.training_batch import TrainingBatch
from learner.train import take_step
from tests.unit.learner.fake_broker import FakeBroker, random_rollout, reward_of
from tests.unit.learner.small_run import (
    ALONE,
    GROUP_SIZE,
    VOCAB_SIZE,
    small_broker,
    small_config,
    small_run,
    weights_of,
    with_loss,
)


def _batch(run: TrainingRun, changes: dict[RolloutId, dict[str, object]]) -> TrainingBatch:
    """Three groups in chunks of two and one, some documents with other values."""
    batch = run.updater.start_batch(0)
    while len(batch.group_ids) < 3:
        chunk = run.source.next_chunk(run.lineage, 0, held=batch.group_ids)
        assert isinstance(chunk, Chunk)
        run.updater.accumulate(batch, _changed(chunk, changes))
    return batch


def _changed(chunk: Chunk, changes: dict[RolloutId, dict[str, object]]) -> Chunk:
    documents: dict[RolloutId, Document] = {
        key: dataclasses.replace(document, **changes.get(key, {}))  # type: ignore[arg-type]
        for key, document in chunk.documents.items()
    }
    return dataclasses.replace(chunk, documents=documents)


def _rollout(group_id: int, index: int) -> RolloutId:
    return RolloutId(group_id=group_id, index=index, attempt=1)


def _logprobs(group_id: int, index: int, token: int, value: float) -> Float32Array:
    arrays = random_rollout(VOCAB_SIZE)(group_id, index)
    logprobs = arrays.behavior_logprobs.copy()
    logprobs[token] = value
    return logprobs


@pytest.mark.parametrize("over", ["group", "batch"])
def test_the_rollout_the_quantity_and_the_tokens_are_named(tmp_path: Path, over: str) -> None:
    broken = _rollout(1, 2)
    changes: dict[RolloutId, dict[str, object]] = {
        broken: {"behavior_logprobs": _logprobs(1, 2, 1, float("nan"))}
    }
    config = with_loss(small_config(tmp_path, groups_per_step=3), advantage_over=over)
    with small_run(config, small_broker(chunk_sizes=(2, 2, 1))) as run:
        before = weights_of(run.policy)
        batch = _batch(run, changes)
        assert not run.apply(batch).finite
        (found,) = find_culprits(run.updater, ALONE, batch)
        assert found == Finding(
            group_id=1, index=2, quantity="behavior_logprobs", problem="nan", start=1, end=2
        )
        assert found.message() == "group 1 rollout 2, tokens 1 to 1: behavior_logprobs nan"
        for name, weight in weights_of(run.policy).items():
            assert torch.equal(weight, before[name])


def test_a_gradient_that_overflows_is_put_down_to_the_answer_that_pulls_hardest(
    tmp_path: Path,
) -> None:
    changes: dict[RolloutId, dict[str, object]] = {_rollout(2, 3): {"advantage": 3e37}}
    with small_run(small_config(tmp_path, groups_per_step=3)) as run:
        batch = _batch(run, changes)
        assert not run.apply(batch).finite
        (found,) = find_culprits(run.updater, ALONE, batch)
    assert (found.group_id, found.index, found.quantity) == (2, 3, "gradient")
    assert abs(float(found.problem)) > 1e37


def test_without_a_group_to_blame_there_is_no_finding(tmp_path: Path) -> None:
    with small_run(small_config(tmp_path, groups_per_step=3)) as run:
        batch = _batch(run, {})
        assert find_culprits(run.updater, ALONE, batch) == []


def test_what_is_kept_is_computed_as_if_the_culprit_had_never_come(tmp_path: Path) -> None:
    """The batch after an eviction takes the step of a batch of the same groups."""

    def reward(group_id: int, index: int) -> float:
        return reward_of(group_id, index) * (1e38 if group_id == 1 else 1.0)

    config = with_loss(small_config(tmp_path / "a", groups_per_step=3), advantage_std="none")
    broker = FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, chunk_sizes=(3,), reward=reward)
    with small_run(config, broker) as run:
        assert take_step(run) is None
        after, statistics = weights_of(run.policy), _statistics(run)
    assert broker.evicted == {1: "nonfinite"}
    assert broker.stepped == {0: (0, 2, 3)}
    assert broker.log.count("FetchRollouts") == 2  # groups 0 and 2 did not come again

    plain = with_loss(small_config(tmp_path / "b", groups_per_step=3), advantage_std="none")
    chosen = FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, waiting=[0, 2, 3], next_group=4)
    with small_run(plain, chosen) as run:
        assert take_step(run) is None
        expected = _statistics(run)
        assert statistics.grad_norm == pytest.approx(expected.grad_norm, rel=1e-6)
        assert statistics.loss == pytest.approx(expected.loss, rel=1e-5)
        for name, weight in weights_of(run.policy).items():
            # the first step of AdamW is near the sign of the gradient: rounding of 0 shows
            torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-4)


def _statistics(run: TrainingRun) -> StepStatistics:
    record = read_step_record(record_path(run.process.paths.step_records, 0, 0))
    assert record.statistics is not None
    return record.statistics


def test_chunks_of_nothing_else_are_left_out(tmp_path: Path) -> None:
    with small_run(small_config(tmp_path, groups_per_step=3)) as run:
        batch = _batch(run, {})
        kept = without_groups(batch.chunks, [1])
        assert [chunk.layout.group_ids for chunk in kept] == [(0,), (2,)]
        assert [group.group_id for chunk in kept for group in chunk.groups] == [0, 2]


def test_a_reward_that_no_float32_holds_is_evicted_before_anything_is_computed(
    tmp_path: Path,
) -> None:
    def reward(group_id: int, index: int) -> float:
        return 1e300 * index if group_id == 0 else reward_of(group_id, index)

    broker = FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, reward=reward)
    config = with_loss(small_config(tmp_path), advantage_std="none")
    with small_run(config, broker) as run:
        told: list[str] = []
        run.source.on_findings = lambda reason, findings: told.extend(
            [reason.value, *(finding.message() for finding in findings)]
        )
        assert take_step(run) is None
    assert broker.evicted == {0: "nonfinite"}
    assert broker.stepped == {0: (1, 2)}
    assert told[0] == "nonfinite"
    assert told[1].startswith("group 0 rollout 0: advantage -1.5e+300 of the rewards 0, 1e+300")


def test_a_spike_drops_its_batch_and_three_in_a_row_stop_the_run(tmp_path: Path) -> None:
    def reward(group_id: int, index: int) -> float:
        return reward_of(group_id, index) * (1e4 if group_id >= 20 else 1.0)

    broker = FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, reward=reward)
    config = with_loss(small_config(tmp_path, num_steps=20), advantage_std="none")
    guards = dataclasses.replace(config.learner.guards, spike="skip")
    learner = dataclasses.replace(config.learner, guards=guards)
    with small_run(dataclasses.replace(config, learner=learner), broker) as run:
        for _ in range(10):
            assert take_step(run) is None
        before = weights_of(run.policy)
        with pytest.raises(FatalError, match=r"3 batches in a row at policy_step 10: grad_norm .*"):
            take_step(run)
        for name, weight in weights_of(run.policy).items():
            assert torch.equal(weight, before[name])
    assert broker.evicted == dict.fromkeys(range(20, 26), "quarantined")
    assert broker.policy_step == 10
