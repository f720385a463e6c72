"""Masked tokens carry exactly zero gradient and are counted nowhere, against a slow reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from common.arrays import RolloutArrays
from learner.batches.batch import Document, pack
from learner.batches.chunk import Chunk
from learner.models.model import load_policy
from learner.objectives.aggregation import Aggregation
from learner.run_state import TrainingRun
from learner.step.training_batch import StepOutcome, TrainingBatch
from tests.numerics import reference_grpo
from tests.unit.learner.fake_broker import FakeBroker, random_rollout, reward_of
from tests.unit.learner.small_run import (
    ALONE,
    GROUP_SIZE,
    VOCAB_SIZE,
    small_config,
    small_run,
    with_loss,
)

NUM_GROUPS = 3
MAX_TOKENS = 16


def masked_broker(**settings: object) -> FakeBroker:
    """Each answer has a fresh head and an over-age rest, but one is fresh and one over-age."""

    def masks(group_id: int, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(starts of the spans, which of them are masked)."""
        if index == 1:
            return (0,), ()
        if (group_id, index) == (1, 2):
            return (0,), (0,)
        return (0, 1, 3), (1,) if group_id else (0, 2)

    return FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, masks=masks, **settings)  # type: ignore[arg-type] # test settings


def _is_trained(broker: FakeBroker, group_id: int, index: int, length: int) -> list[bool]:
    """Token by token, without the learner's code."""
    starts, masked = broker.masks(group_id, index)
    span_of = [max(n for n, start in enumerate(starts) if start <= t) for t in range(length)]
    return [number not in masked for number in span_of]


def _gather(run: TrainingRun) -> TrainingBatch:
    batch = run.updater.start_batch(run.policy_step)
    while len(batch.group_ids) < run.config.learner.groups_per_step:
        chunk = run.source.next_chunk(run.lineage, run.policy_step, held=batch.group_ids)
        assert isinstance(chunk, Chunk)
        run.updater.accumulate(batch, chunk)
    return batch


def _step(
    root: Path, aggregation: Aggregation
) -> tuple[FakeBroker, dict[str, Tensor], StepOutcome, float]:
    """Gradients before the step, what the step says, and its denominator."""
    broker = masked_broker(chunk_sizes=(2, 1))
    config = with_loss(
        small_config(root, groups_per_step=NUM_GROUPS, microbatch_tokens=48),
        aggregation=aggregation,
    )
    with small_run(config, broker) as run:
        batch = _gather(run)
        gradients = {
            name: weight.grad.clone()
            for name, weight in run.policy.trained_weights()
            if weight.grad is not None
        }
        return broker, gradients, run.apply(batch), batch.denominator


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_gradient_loss_and_counts_are_those_of_the_trained_tokens_alone(
    tmp_path: Path, aggregation: Aggregation
) -> None:
    broker, gradients, outcome, denominator = _step(tmp_path, aggregation)
    policy = load_policy(tmp_path / "model", ALONE, max_length=64)
    values, total = [], torch.zeros(())
    for group_id in range(NUM_GROUPS):
        rewards = [reward_of(group_id, index) for index in range(GROUP_SIZE)]
        advantages = reference_grpo.advantages(rewards, "sample", 1e-6)  # of all four answers
        for index, advantage in enumerate(advantages):
            arrays = broker.sample(group_id, index)
            length = len(arrays.completion_token_ids)
            trained = _is_trained(broker, group_id, index, length)
            if not any(trained):
                continue
            ids = np.concatenate([arrays.prompt_token_ids, arrays.completion_token_ids])
            tokens = torch.from_numpy(ids.astype(np.int64))
            table = torch.log_softmax(policy.causal_lm(input_ids=tokens[None]).logits[0], -1)
            start = len(arrays.prompt_token_ids)
            logprobs = table[start - 1 : -1].gather(-1, tokens[start:, None]).view(-1)
            weight = 1.0 / sum(trained) if aggregation == "sequence" else 1.0
            kept = []
            for t in [t for t, is_trained in enumerate(trained) if is_trained]:
                behavior = float(arrays.behavior_logprobs[t])
                ratio = min(float(np.exp(logprobs[t].item() - behavior)), 2.0)
                total = total - weight * ratio * advantage * logprobs[t]
                kept.append(
                    reference_grpo.token_objective(
                        logprobs[t].item(), behavior, advantage, low=0.2, high=0.2, cap=2.0
                    )
                )
            values.append(kept)
    total.backward()
    assert outcome.sums["tokens"] == sum(map(len, values))
    expected_denominator = {
        "token": sum(map(len, values)),
        "sequence": len(values),
        "constant": MAX_TOKENS * len(values),
    }
    assert denominator == expected_denominator[aggregation]
    loss = -reference_grpo.aggregate(values, aggregation, MAX_TOKENS)
    assert outcome.loss == pytest.approx(loss, rel=1e-4, abs=1e-6)
    for name, weight_tensor in policy.trained_weights():
        expected = weight_tensor.grad
        assert expected is not None
        scale = expected.abs().max().item()
        torch.testing.assert_close(gradients[name], expected, rtol=1e-4, atol=1e-5 * scale)


def test_what_a_masked_token_was_sampled_with_cannot_reach_the_gradient(tmp_path: Path) -> None:
    """Change every masked behavior log-probability: not one bit of the gradient moves."""

    def gradients(change: float) -> Mapping[str, Tensor]:
        broker = masked_broker()
        plain = broker.sample

        def sample(group_id: int, index: int) -> RolloutArrays:
            arrays = plain(group_id, index)
            length = len(arrays.completion_token_ids)
            trained = _is_trained(broker, group_id, index, length)
            logprobs = arrays.behavior_logprobs + np.where(trained, 0.0, change)
            return replace(arrays, behavior_logprobs=logprobs.astype(np.float32))

        broker.sample = sample
        broker_config = small_config(tmp_path, groups_per_step=NUM_GROUPS)
        with small_run(broker_config, broker) as run:
            _gather(run)
            return {
                name: weight.grad.clone()
                for name, weight in run.policy.trained_weights()
                if weight.grad is not None
            }

    before, after = gradients(0.0), gradients(-7.0)
    assert all(torch.equal(after[name], gradient) for name, gradient in before.items())


def test_a_masked_document_packs_the_trained_tokens_in_their_places() -> None:
    document = Document(
        prompt_token_ids=np.array([3, 4]),
        completion_token_ids=np.array([5, 6, 7, 8]),
        behavior_logprobs=-np.arange(4, dtype=np.float32),
        trained=np.array([False, True, False, True]),
    )
    packed = pack([[document]], row_length=6)
    assert packed.input_ids.tolist() == [[3, 4, 5, 6, 7, 8]], "masked tokens stay as context"
    assert packed.positions.tolist() == [2, 4]
    assert packed.target_ids.tolist() == [6, 8]
    assert packed.behavior_logprobs.tolist() == [-1.0, -3.0]
    assert packed.advantages.shape == packed.weights.shape == packed.lags.shape == (2,)
    assert packed.lengths.tolist() == [2]
