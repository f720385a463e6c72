"""Rewards of single steps through the learner: the paper's loss, however its groups arrive."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from common.config import Config
from common.types import (
    EvictReason,
    RolloutId,
    StepReward,
    Verdict,
    VerdictStatus,
    VerifiedGroup,
    VerifiedRollout,
)
from learner.batches.chunk import Chunk
from learner.batches.group_source import Ending
from learner.batches.screening import Screen
from learner.checkpoints.lineage import Lineage
from learner.train import train
from tests.builders import prompt, rollout_header, version
from tests.numerics import reference_objectives
from tests.unit.learner.fake_broker import FakeBroker, Killed, random_rollout
from tests.unit.learner.small_run import (
    ALONE,
    GROUP_SIZE,
    VOCAB_SIZE,
    RecordingPublisher,
    small_config,
    small_model,
    small_process,
    small_run,
    with_loss,
)

NUM_GROUPS = 3
_SAMPLE = random_rollout(VOCAB_SIZE)


def _steps(group_id: int, index: int) -> tuple[StepReward, ...]:
    """Every third token ends a step, and the last; none for one answer of each group."""
    length = len(_SAMPLE(group_id, index).completion_token_ids)
    ends = sorted({*range(2, length, 3), length - 1}) if index else []
    return tuple(StepReward(end=end, value=(group_id + index * end) % 5 / 4) for end in ends)


@dataclass
class StepBroker(FakeBroker):
    """Verdicts of a process model."""

    def _verdict(self, rollout_id: RolloutId) -> Verdict:
        own = _steps(rollout_id.group_id, rollout_id.index)
        return msgspec.structs.replace(super()._verdict(rollout_id), steps=own)


def _broker(*chunk_sizes: int, **settings: Any) -> StepBroker:
    return StepBroker(_SAMPLE, GROUP_SIZE, chunk_sizes=chunk_sizes, **settings)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("start") / "model")


def _config(root: Path, model: Path, **learner: Any) -> Config:
    shutil.copytree(model, root / "model", dirs_exist_ok=True)
    config = small_config(root, groups_per_step=NUM_GROUPS, **learner)
    return with_loss(
        config,
        supervision="process",
        advantage_std="population",
        advantage_epsilon=0.0,
        correction="none",
        proximal="behavior",
    )


def _gradients(run_config: Config, broker: FakeBroker) -> tuple[float, dict[str, Tensor]]:
    """Summed loss and unnormalised gradients of one batch."""
    with small_run(run_config, broker) as run:
        batch = run.updater.start_batch(0)
        while len(batch.group_ids) < NUM_GROUPS:
            chunk = run.source.next_chunk(run.lineage, 0, held=batch.group_ids)
            assert isinstance(chunk, Chunk)
            run.updater.accumulate(batch, chunk)
        gradients = {
            name: weight.grad.clone()
            for name, weight in run.policy.trained_weights()
            if weight.grad is not None
        }
        return float(batch.sums[0]), gradients


def _paper_loss(run_config: Config) -> tuple[float, dict[str, Tensor]]:
    """An answer at a time, unpacked: - sum_t min(r_t A_t, clip(r_t) A_t), A from the loops."""
    with small_run(run_config) as run:
        total = torch.zeros(())
        for group_id in range(NUM_GROUPS):
            answers = [_SAMPLE(group_id, index) for index in range(GROUP_SIZE)]
            lengths = [len(arrays.completion_token_ids) for arrays in answers]
            steps = [_steps(group_id, index) for index in range(GROUP_SIZE)]
            steps[0] = (StepReward(end=lengths[0] - 1, value=float(group_id % 2)),)  # the outcome
            advantages = reference_objectives.process(
                [[step.value for step in own] for own in steps],
                [[step.end for step in own] for own in steps],
                lengths,
            )
            for arrays, values in zip(answers, advantages, strict=True):
                start = len(arrays.prompt_token_ids)
                ids = np.concatenate([arrays.prompt_token_ids, arrays.completion_token_ids])
                tokens = torch.from_numpy(ids.astype(np.int64))
                logits = run.policy.causal_lm(input_ids=tokens[None]).logits[0, start - 1 : -1]
                table = torch.log_softmax(logits, -1)
                chosen = table.gather(-1, tokens[start:, None]).view(-1)
                ratio = (chosen - torch.from_numpy(arrays.behavior_logprobs)).exp()
                weight = torch.tensor(values)
                total = total - torch.min(ratio * weight, ratio.clamp(0.8, 1.2) * weight).sum()
        weights = dict(run.policy.trained_weights())
        gradients = torch.autograd.grad(total, list(weights.values()))
        return float(total.detach()), dict(zip(weights, gradients, strict=True))


def test_loss_and_gradient_are_those_of_the_papers_loops(tmp_path: Path, model: Path) -> None:
    config = _config(tmp_path, model)
    loss, gradients = _gradients(config, _broker(1, 2))
    expected_loss, expected = _paper_loss(config)
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5 * scale + 1e-9)


@pytest.mark.parametrize("shape", [{"microbatch_tokens": 1 << 16}, {"row_tokens": 60}])
def test_how_answers_are_packed_changes_rounding_only(
    tmp_path: Path, model: Path, shape: dict[str, int]
) -> None:
    loss, gradients = _gradients(_config(tmp_path, model, microbatch_tokens=1), _broker(1))
    packed_loss, packed = _gradients(_config(tmp_path, model, **shape), _broker(NUM_GROUPS))
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(packed[name], gradient, rtol=1e-5, atol=1e-5 * scale + 1e-9)


@pytest.mark.parametrize("kill_at", [6, 9, 14])
def test_a_killed_learner_arrives_at_the_same_bits(
    tmp_path: Path, model: Path, kill_at: int
) -> None:
    finals = []
    for name, broker in (("calm", _broker(1, 2)), ("killed", _broker(1, 2, kill_at=kill_at))):
        config = _config(tmp_path / name, model, num_steps=3, checkpoint_every=2)
        publisher, num_starts = RecordingPublisher(), 0
        while not broker.ended:
            num_starts += 1
            try:
                with small_process(config) as process:
                    assert train(process, broker, ALONE, publisher) is Ending.COMPLETED
            except Killed:
                assert name == "killed"
        assert num_starts == 1 + (name == "killed")
        finals.append(load_file(tmp_path / name / "run/model/model.safetensors"))
    for name, weight in finals[0].items():
        assert torch.equal(finals[1][name], weight), name


def test_steps_change_what_is_learnt(tmp_path: Path, model: Path) -> None:
    config = _config(tmp_path, model)
    _, gradients = _gradients(config, _broker(NUM_GROUPS))
    _, outcome = _gradients(with_loss(config, supervision="outcome"), _broker(NUM_GROUPS))
    assert any(not torch.equal(gradients[name], outcome[name]) for name in gradients)


def test_an_answer_judged_as_a_whole_is_one_step(tmp_path: Path, model: Path) -> None:
    """Verdicts of a plain verifier: process supervision is then outcome supervision."""
    config = _config(tmp_path, model)
    plain = FakeBroker(_SAMPLE, GROUP_SIZE, chunk_sizes=(NUM_GROUPS,))
    again = FakeBroker(_SAMPLE, GROUP_SIZE, chunk_sizes=(NUM_GROUPS,))
    loss, gradients = _gradients(config, plain)
    expected_loss, expected = _gradients(with_loss(config, supervision="outcome"), again)
    assert loss == expected_loss
    assert all(torch.equal(gradients[name], gradient) for name, gradient in expected.items())


def test_masked_tokens_leave_the_advantages_of_the_others_as_they_are(
    tmp_path: Path, model: Path
) -> None:
    def masks(group_id: int, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        long = len(_SAMPLE(group_id, index).completion_token_ids) > 1
        return ((0, 1), (0,)) if long else ((0,), ())

    config = _config(tmp_path, model)
    found = []
    for settings in ({}, {"masks": masks}):
        with small_run(config, _broker(NUM_GROUPS, **settings)) as run:
            chunk = run.source.next_chunk(Lineage(), 0, held=())
            assert isinstance(chunk, Chunk)
            found.append(chunk.documents)
    whole, masked = found
    for rollout_id, document in masked.items():
        values = document.token_advantages
        expected = whole[rollout_id].token_advantages
        assert values is not None
        assert expected is not None
        assert (
            document.select_trained(values).tolist() == document.select_trained(expected).tolist()
        )


def test_a_step_that_ends_behind_its_answer_is_quarantined(tmp_path: Path) -> None:
    verdicts = [
        Verdict(status=VerdictStatus.GRADED, reward=0.5, steps=(StepReward(end=end, value=0.5),))
        for end in (4, 5)
    ]
    header = rollout_header(group_id=3, index=0, spans=((0, version(5)),), num_completion=5)
    screen = Screen(small_config(tmp_path), Lineage(), 5)
    reasons = [
        screen.reason_to_evict(
            VerifiedGroup(
                group_id=3,
                prompt=prompt(),
                deadline_step=5,
                rollouts=(VerifiedRollout(rollout=header, verdict=verdict),),
            )
        )
        for verdict in verdicts
    ]
    assert reasons == [None, EvictReason.QUARANTINED]
