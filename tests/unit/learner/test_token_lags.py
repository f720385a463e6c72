"""An answer that was continued under newer weights has a lag a token."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from common.arrays import RolloutArrays
from common.types import RolloutHeader, RolloutId, VersionSpan, WeightVersion
from learner.batches.chunk import Chunk
from tests.numerics import reference_grpo
from tests.numerics.reference_objectives import Sample, token_values
from tests.unit.learner.fake_broker import FakeBroker, random_rollout, reward_of
from tests.unit.learner.small_run import (
    GROUP_SIZE,
    VOCAB_SIZE,
    small_config,
    small_run,
    with_loss,
)
from tests.unit.learner.test_update import _logprobs

POLICY_STEP = 4
SPANS = ((0, 1), (3, 3), (6, 4))
"""(first token, policy_step of the weights that sampled it and those after it)."""


class Interrupted(FakeBroker):
    """Every answer was begun at step 1 and went on under steps 3 and 4."""

    def _header(self, rollout_id: RolloutId, arrays: RolloutArrays) -> RolloutHeader:
        spans = tuple(
            VersionSpan(start=start, version=WeightVersion(incarnation=0, policy_step=step))
            for start, step in SPANS
        )
        whole = super()._header(rollout_id, arrays)
        fields = {name: getattr(whole, name) for name in RolloutHeader.__struct_fields__}
        return RolloutHeader(**fields | {"version_spans": spans})


def _lags(length: int) -> list[int]:
    steps = [max(pair for pair in SPANS if pair[0] <= token)[1] for token in range(length)]
    return [POLICY_STEP - step for step in steps]


def test_interpolation_goes_by_the_lag_of_each_token(tmp_path: Path) -> None:
    broker = Interrupted(
        random_rollout(VOCAB_SIZE), GROUP_SIZE, chunk_sizes=(2,), policy_step=POLICY_STEP
    )
    settings = small_config(tmp_path, max_policy_lag=3)
    config = with_loss(settings, proximal="interpolated", clip_low=0.02, clip_high=0.02)
    with small_run(config, broker) as run:
        batch = run.updater.start_batch(POLICY_STEP)
        chunk = run.source.next_chunk(run.lineage, POLICY_STEP, held=())
        assert isinstance(chunk, Chunk)
        documents = chunk.documents
        for document in documents.values():
            assert document.token_lags is not None
            assert document.token_lags.tolist() == _lags(len(document.completion_token_ids))
            assert document.lag == 3
        policy = [_logprobs(run.policy, document) for document in documents.values()]
        run.updater.accumulate(batch, chunk)
        outcome = run.apply(batch)
    advantages = [document.advantage for document in documents.values()]
    sample = Sample(
        policy=policy,
        behavior=[document.behavior_logprobs.tolist() for document in documents.values()],
        advantages=advantages,
        reference=policy,
        lags=[_lags(len(row)) for row in policy],
    )
    keys = dataclasses.asdict(config.learner.loss)
    expected = -reference_grpo.aggregate(token_values(sample, keys), "token", 0)
    assert outcome.loss == pytest.approx(expected, rel=1e-4)
    uniform = dataclasses.replace(sample, lags=[[3] * len(row) for row in policy])
    other = -reference_grpo.aggregate(token_values(uniform, keys), "token", 0)
    assert abs(other - expected) > 1e-3, "the lags would not matter"
    assert outcome.sums["on_policy_tokens"] == 0, "tokens of lag 0 stand on an older cache"


def test_an_answer_of_one_version_needs_no_lags_of_its_own(tmp_path: Path) -> None:
    broker = FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, chunk_sizes=(2,), reward=reward_of)
    with small_run(small_config(tmp_path), broker) as run:
        chunk = run.source.next_chunk(run.lineage, 0, held=())
        assert isinstance(chunk, Chunk)
        assert all(document.token_lags is None for document in chunk.documents.values())
