"""A learner step at lag 0 is the step of a plain synchronous trainer, however its groups arrive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.config import Config
from common.types import RolloutId
from learner.batches.batch import Document, build_microbatch
from learner.batches.chunk import Chunk
from learner.batches.group_source import Ending
from learner.batches.layout import ChunkLayout
from learner.models.model import load_policy, run_policy
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
    weights_of,
    with_loss,
)

NUM_GROUPS = 6


def _gather(run: TrainingRun) -> TrainingBatch:
    batch = run.updater.start_batch(run.policy_step)
    while len(batch.group_ids) < run.config.learner.groups_per_step:
        chunk = run.source.next_chunk(run.lineage, run.policy_step, held=batch.group_ids)
        assert isinstance(chunk, Chunk)
        run.updater.accumulate(batch, chunk)
    return batch


def _step(root: Path, broker: FakeBroker, **loss: Any) -> tuple[dict[str, Tensor], TrainingBatch]:
    config = with_loss(small_config(root, groups_per_step=NUM_GROUPS), **loss)
    with small_run(config, broker) as run:
        batch = _gather(run)
        assert run.apply(batch).finite
        return weights_of(run.policy), batch


def _documents(broker: FakeBroker) -> dict[RolloutId, Document]:
    """What a synchronous trainer would make of the same groups, by the slow reference."""
    documents = {}
    for group_id in range(NUM_GROUPS):
        rewards = [reward_of(group_id, index) for index in range(GROUP_SIZE)]
        advantages = reference_grpo.advantages(rewards, "sample", 1e-6)
        for index, advantage in enumerate(advantages):
            arrays = broker.sample(group_id, index)
            documents[RolloutId(group_id=group_id, index=index, attempt=1)] = Document(
                prompt_token_ids=arrays.prompt_token_ids,
                completion_token_ids=arrays.completion_token_ids,
                behavior_logprobs=arrays.behavior_logprobs,
                advantage=advantage,
            )
    return documents


def _plain_step(
    config: Config, documents: dict[RolloutId, Document], layouts: Sequence[ChunkLayout]
) -> dict[str, Tensor]:
    """Truncated importance sampling, written out: one loop, no learner code but model and rows."""
    policy = load_policy(Path(config.model.path), ALONE, max_length=64)
    weights = [weight for _, weight in policy.trained_weights()]
    groups = [
        {"params": [item for item in weights if item.ndim >= 2]},
        {"params": [item for item in weights if item.ndim < 2]},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=config.learner.learning_rate, betas=(0.9, 0.999), weight_decay=0.0, fused=True
    )
    num_tokens = sum(len(document.completion_token_ids) for document in documents.values())
    for microbatch in (item for layout in layouts for item in layout.ranks[0]):
        packed = build_microbatch(microbatch, documents)
        logprobs, _ = run_policy(policy, packed, 1.0)
        weight = (logprobs.detach() - packed.behavior_logprobs).exp().clamp(max=2.0)
        ratio = (logprobs - logprobs.detach()).exp()
        (-(weight * (ratio * packed.advantages)).sum()).backward()
    for item in weights:
        assert item.grad is not None
        item.grad /= num_tokens
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    return weights_of(policy)


def test_the_recorded_layout_gives_a_plain_trainer_the_same_bits(tmp_path: Path) -> None:
    broker = FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, chunk_sizes=(3, 1, 2))
    ours, batch = _step(tmp_path, broker)
    expected = _plain_step(small_config(tmp_path), _documents(broker), batch.layouts)
    assert len(batch.layouts) > 1
    for name, weight in expected.items():
        assert torch.equal(ours[name], weight), name


@pytest.mark.parametrize("chunk_sizes", [(1,), (2,), (5, 1), (6,)])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_how_groups_arrive_changes_the_step_by_rounding_only(
    tmp_path: Path, chunk_sizes: tuple[int, ...], aggregation: Aggregation
) -> None:
    def gradients(sizes: tuple[int, ...], microbatch_tokens: int) -> dict[str, Tensor]:
        config = small_config(
            tmp_path, groups_per_step=NUM_GROUPS, microbatch_tokens=microbatch_tokens
        )
        broker = FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, chunk_sizes=sizes)
        with small_run(with_loss(config, aggregation=aggregation), broker) as run:
            batch = _gather(run)
            return {
                name: weight.grad / batch.denominator
                for name, weight in run.policy.trained_weights()
                if weight.grad is not None
            }

    whole = gradients((NUM_GROUPS,), 1 << 16)
    streamed = gradients(chunk_sizes, 40)
    for name, expected in whole.items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(streamed[name], expected, rtol=1e-5, atol=1e-5 * scale)


def test_loss_and_statistics_equal_the_slow_reference(tmp_path: Path) -> None:
    broker = FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, chunk_sizes=(2,))
    config = small_config(tmp_path, groups_per_step=NUM_GROUPS)
    with small_run(config, broker) as run:
        outcome = run.apply(_gather(run))
    fresh = load_policy(Path(config.model.path), ALONE, max_length=64)
    values, ratios, gaps = [], [], []
    for document in _documents(broker).values():
        logprobs = _logprobs(fresh, document)
        pairs = list(zip(logprobs, document.behavior_logprobs.tolist(), strict=True))
        values.append(
            [
                reference_grpo.token_objective(p, b, document.advantage, low=0.2, high=0.2, cap=2.0)
                for p, b in pairs
            ]
        )
        ratios += [np.exp(p - b) for p, b in pairs]
        gaps += [abs(p - b) for p, b in pairs]
    assert outcome.loss == pytest.approx(-reference_grpo.aggregate(values, "token", 0), rel=1e-5)
    assert outcome.sums["tokens"] == outcome.sums["on_policy_tokens"] == len(ratios)
    assert outcome.mean("behavior_ratio") == pytest.approx(np.mean(ratios), rel=1e-5)
    assert outcome.mean("capped") == pytest.approx(np.mean(np.array(ratios) > 2.0))
    assert outcome.mean("clipped") == 0.0
    assert outcome.on_policy_gap == pytest.approx(max(gaps), rel=1e-5)


def _logprobs(policy: Any, document: Document) -> list[float]:
    ids = np.concatenate([document.prompt_token_ids, document.completion_token_ids])
    tokens = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        table = torch.log_softmax(policy.causal_lm(input_ids=tokens[None]).logits[0], -1)
    start = len(document.prompt_token_ids)
    found: list[float] = table[start - 1 : -1].gather(-1, tokens[start:, None]).view(-1).tolist()
    return found


def test_a_batch_of_uniform_rewards_moves_no_weight(tmp_path: Path) -> None:
    broker = FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, reward=lambda *_: 1.0)
    config = small_config(tmp_path)
    with small_run(config, broker) as run:
        before = weights_of(run.policy)
        outcome = run.apply(_gather(run))
        assert outcome.finite
        assert outcome.grad_norm == 0.0
        for name, weight in weights_of(run.policy).items():
            assert torch.equal(weight, before[name])


def test_a_gradient_that_is_not_finite_leaves_weights_and_moments_alone(tmp_path: Path) -> None:
    with small_run(small_config(tmp_path)) as run:
        batch = _gather(run)
        first = next(weight for _, weight in run.policy.trained_weights())
        assert first.grad is not None
        first.grad.view(-1)[3] = float("nan")
        before = weights_of(run.policy)
        outcome: StepOutcome = run.apply(batch)
        assert not outcome.finite
        for name, weight in run.policy.trained_weights():
            assert torch.equal(weight, before[name])
            assert run.optimizer.state[weight]["step"].item() == 0
            assert weight.grad is None


def test_clipping_bounds_the_step_by_the_global_norm(tmp_path: Path) -> None:
    def norms(max_grad_norm: float) -> tuple[float, float]:
        config = small_config(tmp_path, max_grad_norm=max_grad_norm)
        with small_run(config) as run:
            outcome = run.apply(_gather(run))
            moments = [run.optimizer.state[w]["exp_avg"] for _, w in run.policy.trained_weights()]
            applied = torch.stack([item.norm() for item in moments]).norm().item() / 0.1
            return outcome.grad_norm, applied

    raw, applied = norms(0.0)
    assert applied == pytest.approx(raw, rel=1e-5)
    same_raw, clipped = norms(raw / 4)
    assert same_raw == raw
    assert clipped == pytest.approx(raw / 4, rel=1e-4)


def test_the_kl_term_is_zero_at_the_reference_and_pulls_back_towards_it(tmp_path: Path) -> None:
    same = random_rollout(VOCAB_SIZE)
    broker = FakeBroker(lambda _, index: same(0, index), GROUP_SIZE, reward=lambda *_: 1.0)
    config = small_config(tmp_path, learning_rate=1e-3)
    with small_run(with_loss(config, kl_coefficient=1.0), broker) as run:
        at_reference = run.apply(_gather(run))
        assert at_reference.loss == pytest.approx(0.0, abs=1e-6)
        assert at_reference.grad_norm == pytest.approx(0.0, abs=1e-4)
        with torch.no_grad():
            for _, weight in run.policy.trained_weights():
                weight.mul_(1.2)
        losses = []
        for _ in range(5):
            broker.handed_over.clear()
            losses.append(run.apply(_gather(run)).loss)
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] > 0


def test_a_stopped_learner_gets_no_further_chunk(tmp_path: Path) -> None:
    with small_run(small_config(tmp_path)) as run:
        run.process.stop.set("test")
        assert run.source.next_chunk(run.lineage, 0, held=()) is Ending.STOPPED
