"""PPO on answers that the policy samples itself: the reward rises and the critic foresees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.arrays import RolloutArrays
from common.config import CriticConfig
from learner.run_state import TrainingRun
from learner.train import take_step
from tests.unit.learner.fake_broker import FakeBroker, random_rollout
from tests.unit.learner.small_run import VOCAB_SIZE, small_config, small_run, with_loss

pytestmark = pytest.mark.slow

NUM_STEPS = 8
NUM_TOKENS = 6
GROUP_SIZE = 2


class SelfSampler:
    """Answers of the policy as it is when they are first asked for; half of all tokens are good."""

    def __init__(self) -> None:
        self.run: TrainingRun | None = None
        self._known: dict[tuple[int, int], RolloutArrays] = {}

    def __call__(self, group_id: int, index: int) -> RolloutArrays:
        """The same answer each time."""
        if (group_id, index) not in self._known:
            self._known[group_id, index] = self._sample(group_id, index)
        return self._known[group_id, index]

    @torch.no_grad()
    def _sample(self, group_id: int, index: int) -> RolloutArrays:
        assert self.run is not None
        prompt = np.random.default_rng(group_id).integers(0, VOCAB_SIZE, 3)
        source = torch.Generator().manual_seed(1000 * group_id + index)
        ids, logprobs = prompt.tolist(), []
        for _ in range(NUM_TOKENS):
            logits = self.run.policy.causal_lm(input_ids=torch.tensor([ids])).logits[0, -1]
            table = torch.log_softmax(logits, -1)
            token = int(torch.multinomial(table.exp(), 1, generator=source))
            ids.append(token)
            logprobs.append(float(table[token]))
        return RolloutArrays(
            prompt_token_ids=prompt.astype(np.int32),
            completion_token_ids=np.array(ids[3:], dtype=np.int32),
            behavior_logprobs=np.array(logprobs, dtype=np.float32),
        )

    def reward(self, group_id: int, index: int) -> float:
        """Share of tokens with an even id."""
        return float(np.mean(self(group_id, index).completion_token_ids % 2 == 0))


def _rows(root: Path, **critic: Any) -> list[dict[str, float]]:
    settings = CriticConfig(**{"learning_rate": 1e-2, "gae_lambda": 0.95, "whiten": True} | critic)
    config = small_config(
        root,
        group_size=GROUP_SIZE,
        groups_per_step=12,
        learning_rate=3e-3,
        updates_per_batch=2,
        epochs_per_batch=2,
        microbatch_tokens=1024,
        checkpoint_every=100,
        critic=settings,
    )
    loss = {"baseline": "critic", "kl_coefficient": 0.001, "kl_in": "reward", "kl_estimator": "k1"}
    sampler = SelfSampler()
    broker = FakeBroker(sampler, GROUP_SIZE, chunk_sizes=(6,), reward=sampler.reward)
    with small_run(with_loss(config, **loss), broker) as run:
        sampler.run = run
        for _ in range(NUM_STEPS):
            assert take_step(run) is None
        lines = (run.process.paths.telemetry / "steps.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_ppo_raises_the_reward_and_its_critic_follows(tmp_path: Path) -> None:
    rows = _rows(tmp_path)
    assert rows[0]["reward_mean"] == pytest.approx(0.5, abs=0.15)
    assert rows[-1]["reward_mean"] > rows[0]["reward_mean"] + 0.25
    assert rows[-1]["value_mean"] == pytest.approx(rows[-1]["return_mean"], abs=0.15)
    assert rows[-1]["value_loss"] < rows[0]["value_loss"] / 4


def test_a_critic_alone_comes_to_foresee_what_the_prompt_decides(tmp_path: Path) -> None:
    """Value pre-training: the policy stays, every second prompt is hopeless."""
    same = random_rollout(VOCAB_SIZE)
    broker = FakeBroker(
        lambda group_id, index: same(group_id % 4, index),
        GROUP_SIZE,
        chunk_sizes=(4,),
        reward=lambda group_id, _: float(group_id % 2),
    )
    critic = CriticConfig(learning_rate=1e-2, warmup_steps=100, value_clip=0.0)
    config = small_config(
        tmp_path,
        group_size=GROUP_SIZE,
        groups_per_step=4,
        microbatch_tokens=1024,
        checkpoint_every=100,
        critic=critic,
    )
    with small_run(with_loss(config, baseline="critic"), broker) as run:
        start = run.policy.causal_lm.model.layers[0].mlp.up_proj.weight.clone()
        for _ in range(20):
            assert take_step(run) is None
        assert torch.equal(run.policy.causal_lm.model.layers[0].mlp.up_proj.weight, start)
        lines = (run.process.paths.telemetry / "steps.jsonl").read_text().splitlines()
    explained = [json.loads(line)["explained_variance"] for line in lines]
    assert explained[0] == pytest.approx(0.0, abs=1e-6)
    assert explained[-1] > 0.9
