"""Every objective through the learner: the papers' loss, however its groups arrive."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.config import Config, LossConfig
from learner.batches.chunk import Chunk
from learner.run_state import TrainingRun
from learner.step.training_batch import StepOutcome, TrainingBatch
from tests.numerics import reference_grpo
from tests.numerics.reference_objectives import Sample, leave_one_out, token_values
from tests.numerics.test_objectives import OBJECTIVES
from tests.unit.learner.fake_broker import FakeBroker, random_rollout, reward_of
from tests.unit.learner.small_run import (
    GROUP_SIZE,
    VOCAB_SIZE,
    small_config,
    small_model,
    small_run,
    with_loss,
)

NUM_GROUPS = 4
POLICY_STEP = 3
LAG = 2
MAX_TOKENS = 16
WHOLE = (NUM_GROUPS,)
WITHOUT_CRITIC = [name for name, keys in OBJECTIVES.items() if keys.get("baseline") != "critic"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One initial model for all runs."""
    return small_model(tmp_path_factory.mktemp("start") / "model")


def _reward(group_id: int, index: int) -> float:
    """Mixed rewards, one group of equal ones."""
    return 1.0 if group_id == 2 else reward_of(group_id, index) + 0.5 * (index == 3)


def _broker(chunk_sizes: tuple[int, ...]) -> FakeBroker:
    return FakeBroker(
        random_rollout(VOCAB_SIZE),
        GROUP_SIZE,
        chunk_sizes=chunk_sizes,
        lag=LAG,
        reward=_reward,
        policy_step=POLICY_STEP,
    )


def _config(root: Path, model: Path, **learner: Any) -> Config:
    config = small_config(root, groups_per_step=NUM_GROUPS, **learner)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(model)))


def _gather(run: TrainingRun, policy_step: int = POLICY_STEP) -> TrainingBatch:
    batch = run.updater.start_batch(policy_step)
    while len(batch.group_ids) < NUM_GROUPS:
        chunk = run.source.next_chunk(run.lineage, policy_step, held=batch.group_ids)
        assert isinstance(chunk, Chunk)
        run.updater.accumulate(batch, chunk)
    return batch


def _step(
    root: Path,
    model: Path,
    settings: LossConfig,
    *,
    chunk_sizes: tuple[int, ...] = WHOLE,
    microbatch_tokens: int = 1 << 16,
) -> tuple[StepOutcome, list[Tensor]]:
    """What the step says of itself, and its gradient, which Adam's first moment is a tenth of."""
    config = _config(root, model, microbatch_tokens=microbatch_tokens, max_grad_norm=0.0)
    with small_run(with_loss(config, **dataclasses.asdict(settings)), _broker(chunk_sizes)) as run:
        _move_away_from_the_reference(run)
        outcome = run.apply(_gather(run))
        assert outcome.finite
        moments = [
            run.optimizer.state[w]["exp_avg"].clone() for _, w in run.policy.trained_weights()
        ]
        return outcome, moments


def _move_away_from_the_reference(run: TrainingRun) -> None:
    with torch.no_grad():
        for _, weight in run.policy.trained_weights():
            weight.mul_(1.3)


@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_how_groups_arrive_and_are_packed_changes_rounding_only(
    name: str, tmp_path: Path, model: Path
) -> None:
    settings = LossConfig(**OBJECTIVES[name])
    whole, expected = _step(tmp_path, model, settings)
    streamed, moments = _step(tmp_path, model, settings, chunk_sizes=(1, 2), microbatch_tokens=40)
    assert streamed.loss == pytest.approx(whole.loss, rel=1e-5, abs=1e-6)
    for ours, theirs in zip(moments, expected, strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * scale + 1e-9)


@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_the_learners_loss_is_that_of_the_papers_loops(
    name: str, tmp_path: Path, model: Path, sample: Sample
) -> None:
    settings = LossConfig(**OBJECTIVES[name])
    outcome, _ = _step(tmp_path, model, settings, chunk_sizes=(2,), microbatch_tokens=64)
    batch = dataclasses.replace(sample, advantages=_advantages(settings))
    values = token_values(batch, dataclasses.asdict(settings))
    expected = -reference_grpo.aggregate(values, settings.aggregation, MAX_TOKENS)
    assert outcome.loss == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert outcome.sums["tokens"] == sum(map(len, values))


def _advantages(settings: LossConfig) -> list[float]:
    """By the papers, of all answers of the batch in order."""
    groups = [[_reward(g, i) for i in range(GROUP_SIZE)] for g in range(NUM_GROUPS)]
    std, epsilon = settings.advantage_std, settings.advantage_epsilon
    if settings.advantage_over == "batch":
        centred = [
            r if settings.baseline == "batch-mean" else r - sum(group) / len(group)
            for group in groups
            for r in group
        ]
        return reference_grpo.advantages(centred, std, epsilon)
    if settings.baseline == "leave-one-out":
        return [a for group in groups for a in leave_one_out(group)]
    return [a for group in groups for a in reference_grpo.advantages(group, std, epsilon)]


@pytest.fixture(scope="module")
def sample(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """The broker's batch with log-probabilities of plain Hugging Face forwards."""
    config = _config(tmp_path_factory.mktemp("plain"), model)
    places = [(group, index) for group in range(NUM_GROUPS) for index in range(GROUP_SIZE)]
    with small_run(config) as run:
        reference = [_tables(run, *place) for place in places]
        _move_away_from_the_reference(run)
        policy = [_tables(run, *place) for place in places]
    return Sample(
        policy=[logprobs for logprobs, _ in policy],
        behavior=[_broker(WHOLE).sample(*place).behavior_logprobs.tolist() for place in places],
        advantages=[],
        reference=[logprobs for logprobs, _ in reference],
        lags=[[LAG] * len(logprobs) for logprobs, _ in policy],
        entropy=[entropy for _, entropy in policy],
    )


def _tables(run: TrainingRun, group_id: int, index: int) -> tuple[list[float], list[float]]:
    """Log-probability and entropy of every token of an answer."""
    arrays = _broker(WHOLE).sample(group_id, index)
    start = len(arrays.prompt_token_ids)
    ids = np.concatenate([arrays.prompt_token_ids, arrays.completion_token_ids]).astype(np.int64)
    tokens = torch.from_numpy(ids)
    with torch.no_grad():
        logits = run.policy.causal_lm(input_ids=tokens[None]).logits[0, start - 1 : -1]
    table = torch.log_softmax(logits.double(), -1)
    chosen = table.gather(-1, tokens[start:, None]).view(-1)
    return chosen.tolist(), (-(table.exp() * table).sum(-1)).tolist()


def test_an_entropy_bonus_alone_raises_the_entropy(tmp_path: Path, model: Path) -> None:
    same = random_rollout(VOCAB_SIZE)
    broker = FakeBroker(lambda _, index: same(0, index), GROUP_SIZE, reward=lambda *_: 1.0)
    config = _config(tmp_path, model, learning_rate=1e-3)
    entropies = []
    with small_run(with_loss(config, entropy_coefficient=0.1), broker) as run:
        _move_away_from_the_reference(run)
        for _ in range(5):
            outcome = run.apply(_gather(run, policy_step=0))
            entropies.append(outcome.sums["entropy"])
            broker.handed_over.clear()
    assert entropies == sorted(entropies)
    assert entropies[-1] > entropies[0]


def test_nothing_is_computed_before_the_batch_is_whole_where_its_advantages_need_all_of_it(
    tmp_path: Path, model: Path
) -> None:
    config = _config(tmp_path, model)
    with small_run(with_loss(config, advantage_over="batch"), _broker((1,))) as run:
        batch = _gather(run)
        assert all(weight.grad is None for _, weight in run.policy.trained_weights())
        assert len(batch.waiting) == NUM_GROUPS
        outcome = run.apply(batch)
        assert batch.waiting == []
        assert outcome.grad_norm > 0
