"""The loop's own decisions: what it does with a batch that is not finite."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from common.errors import FatalError
from learner.checkpoints.step_record import read_step_record, record_path
from learner.train import take_step
from tests.unit.learner.fake_broker import FakeBroker, random_rollout, reward_of
from tests.unit.learner.small_run import (
    GROUP_SIZE,
    VOCAB_SIZE,
    small_config,
    small_run,
    weights_of,
    with_loss,
)


def _poisoned(*group_ids: int) -> FakeBroker:
    """Rewards of these groups overflow the gradient norm in float32."""

    def reward(group_id: int, index: int) -> float:
        return reward_of(group_id, index) * (1e38 if group_id in group_ids else 1.0)

    return FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, reward=reward)


def test_a_group_that_is_not_finite_is_evicted_and_replaced_and_its_sibling_is_kept(
    tmp_path: Path,
) -> None:
    broker = _poisoned(1)
    with small_run(with_loss(small_config(tmp_path), advantage_std="none"), broker) as run:
        assert take_step(run) is None
        record = read_step_record(record_path(run.process.paths.step_records, 0, 0))
        assert run.policy_step == 1
        assert all(torch.isfinite(weight).all() for weight in weights_of(run.policy).values())
    assert broker.evicted == {1: "nonfinite"}
    assert broker.stepped == {0: (0, 2)}
    assert record.group_ids == (0, 2)


def test_three_such_batches_in_a_row_stop_the_run(tmp_path: Path) -> None:
    config = with_loss(small_config(tmp_path), advantage_std="none")
    broker = _poisoned(*range(100))
    with small_run(config, broker) as run:
        before = weights_of(run.policy)
        with pytest.raises(FatalError, match="3 batches in a row at policy_step 0"):
            take_step(run)
        for name, weight in weights_of(run.policy).items():
            assert torch.equal(weight, before[name])
    assert len(broker.evicted) == 6
    assert broker.policy_step == 0


def test_the_learning_rate_warms_up_by_policy_step(tmp_path: Path) -> None:
    config = small_config(tmp_path, warmup_steps=4)
    with small_run(config) as run:
        rates = []
        for _ in range(3):
            take_step(run)
            rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0025, 0.005, 0.0075])


def test_readable_rollouts_and_gauges_follow_a_step(tmp_path: Path) -> None:
    config = dataclasses.replace(small_config(tmp_path))
    with small_run(config) as run:
        take_step(run)
        registry = run.process.metrics.registry
        assert registry.get_sample_value("headrace_policy_step") == 1
        assert registry.get_sample_value("headrace_reward_mean") == 0.5
        tokens = registry.get_sample_value("headrace_trained_tokens_total")
    lengths = [len(run_sample) for run_sample in _completions()]
    assert tokens == sum(lengths)


def _completions() -> list[list[int]]:
    sample = random_rollout(VOCAB_SIZE)
    return [
        sample(group_id, index).completion_token_ids.tolist()
        for group_id in range(2)
        for index in range(GROUP_SIZE)
    ]
