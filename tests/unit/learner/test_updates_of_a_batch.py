"""Several updates of a batch, with a critic and without, against a loop written from the paper."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.config import Config, CriticConfig
from common.types import RolloutId
from learner.batches.batch import Document
from learner.batches.chunk import Chunk
from learner.run_state import TrainingRun
from learner.step.critic_update import CriticTrainer
from learner.step.minibatches import split_rollouts
from learner.step.training_batch import StepOutcome
from tests.numerics import reference_grpo
from tests.numerics.reference_ppo import Answer, Critic, Settings, Trainer
from tests.unit.learner.fake_broker import (
    FakeBroker,
    Masks,
    nothing_masked,
    random_rollout,
    reward_of,
)
from tests.unit.learner.small_run import (
    GROUP_SIZE,
    VOCAB_SIZE,
    small_config,
    small_model,
    small_run,
    weights_of,
    with_loss,
)

NUM_GROUPS = 3
SEED = 5
PLACES = [(group_id, index) for group_id in range(NUM_GROUPS) for index in range(GROUP_SIZE)]
RATE, CRITIC_RATE = 3e-3, 1e-2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("start") / "model")


def _config(root: Path, model: Path, loss: dict[str, Any], **learner: Any) -> Config:
    settings = {"groups_per_step": NUM_GROUPS, "learning_rate": RATE} | learner
    config = with_loss(small_config(root, **settings), **loss)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=str(model)),
        run=dataclasses.replace(config.run, seed=SEED),
    )


def _broker(chunk_sizes: tuple[int, ...] = (1, 2), **settings: Any) -> FakeBroker:
    return FakeBroker(random_rollout(VOCAB_SIZE), GROUP_SIZE, chunk_sizes=chunk_sizes, **settings)


def _step(run: TrainingRun, policy_step: int = 0) -> StepOutcome:
    batch = run.updater.start_batch(policy_step)
    while len(batch.group_ids) < NUM_GROUPS:
        chunk = run.source.next_chunk(run.lineage, 0, held=batch.group_ids)
        assert isinstance(chunk, Chunk)
        run.updater.accumulate(batch, chunk)
    return run.apply(batch)


def _critic(run: TrainingRun) -> CriticTrainer:
    assert run.updater.critic is not None
    return run.updater.critic


def _critic_weights(run: TrainingRun) -> dict[str, Tensor]:
    """Copies; empty without a critic."""
    critic = run.updater.critic
    named = () if critic is None else critic.model.named_parameters()
    return {name: weight.detach().clone() for name, weight in named}


def _answers(*, over_batch: bool = False) -> list[Answer]:
    """``over_batch``: advantages normalised twice, in the group without a divisor."""
    rewards = {place: reward_of(*place) for place in PLACES}
    answers = []
    for group_id, index in PLACES:
        arrays = _broker().sample(group_id, index)
        group = [rewards[group_id, other] for other in range(GROUP_SIZE)]
        answers.append(
            Answer(
                tokens=[*arrays.prompt_token_ids.tolist(), *arrays.completion_token_ids.tolist()],
                num_prompt=len(arrays.prompt_token_ids),
                behavior=arrays.behavior_logprobs.tolist(),
                reward=rewards[group_id, index],
                advantage=reference_grpo.advantages(group, "sample", 1e-6)[index],
            )
        )
    if over_batch:
        centred = [item.reward - 0.5 for item in answers]  # half of every group is right
        for answer, advantage in zip(
            answers, reference_grpo.advantages(centred, "sample", 1e-6), strict=True
        ):
            answer.advantage = advantage
    return answers


def _parts(num_updates: int, num_epochs: int) -> list[list[int]]:
    ids = [RolloutId(group_id=group, index=index, attempt=1) for group, index in PLACES]
    parts = [split_rollouts(ids, num_updates, seed=(SEED, 0, epoch)) for epoch in range(num_epochs)]
    return [[ids.index(item) for item in sorted(part)] for epoch in parts for part in epoch]


def _assert_same_way(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> None:
    """Adam makes steps of like size from large and from rounded-off gradients, so single weights
    may differ; the way that all of them have gone may not."""
    assert ours.keys() == theirs.keys() == start.keys()
    apart = torch.stack([(ours[name] - theirs[name]).norm() for name in start]).norm().item()
    way = torch.stack([(theirs[name] - start[name]).norm() for name in start]).norm().item()
    assert way > 0.01
    assert apart < 1e-4 * way


def _assert_same_moments(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> None:
    """Adam's steps forget the size of a gradient, its moments do not."""
    found, expected = (
        torch.cat([state["exp_avg"].view(-1) for state in states]) for states in (ours, theirs)
    )
    assert (found - expected).norm() < 1e-4 * expected.norm()


CRITIC = CriticConfig(
    learning_rate=CRITIC_RATE, discount=0.97, gae_lambda=0.9, value_lambda=0.8, value_clip=0.02
)
PPO: dict[str, Any] = {
    "baseline": "critic",
    "kl_coefficient": 0.05,
    "kl_in": "reward",
    "kl_estimator": "k1",
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "minibatches of the default": ({}, {"updates_per_batch": 4}, {}),
    "epochs of the default": ({}, {"epochs_per_batch": 3}, {}),
    "minibatches of grpo": (
        {"proximal": "behavior", "correction": "none", "aggregation": "sequence"},
        {"updates_per_batch": 3, "epochs_per_batch": 2},
        {"coupled": True, "sequence_mean": True},
    ),
    "minibatches with a kl in the loss": (
        {"kl_coefficient": 0.5},
        {"updates_per_batch": 2, "epochs_per_batch": 2},
        {"k3_in_loss": 0.5},
    ),
    "minibatches of advantages over the batch": (
        {"advantage_over": "batch"},
        {"updates_per_batch": 3},
        {"over_batch": True},
    ),
    "ppo with one update, not clipped": (
        PPO,
        {"critic": dataclasses.replace(CRITIC, max_grad_norm=0.0), "max_grad_norm": 0.0},
        {"norm": math.inf},
    ),
    "ppo": (PPO, {"critic": CRITIC, "updates_per_batch": 3, "epochs_per_batch": 2}, {}),
    "ppo with whitening": (
        PPO,
        {"critic": dataclasses.replace(CRITIC, whiten=True), "updates_per_batch": 2},
        {"whiten": True},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_batch_comes_to_the_weights_of_the_papers_loop(
    name: str, tmp_path: Path, model: Path
) -> None:
    loss, learner, plain = CASES[name]
    with small_run(_config(tmp_path, model, loss, **learner), _broker()) as run:
        has_critic = run.updater.critic is not None
        if has_critic:  # a head of zeros would hide what the backbone is taught
            nn.init.normal_(_critic(run).model.score.weight, generator=torch.manual_seed(1))
        start, critic_start = weights_of(run.policy), _critic_weights(run)
        trainer = _plain_trainer(run, plain)
        outcome = _step(run)
        num_updates, num_epochs = (
            learner.get(key, 1) for key in ("updates_per_batch", "epochs_per_batch")
        )
        answers = _answers(over_batch=plain.get("over_batch", False))
        trainer.train(answers, _parts(num_updates, num_epochs))
        theirs = {name: weight.detach() for name, weight in trainer.policy.named_parameters()}
        _assert_same_way(weights_of(run.policy), theirs, start)
        if trainer.critic is not None:
            _assert_same_way(_critic_weights(run), trainer.critic.weights(), critic_start)
        for (trained, optimizer), adam in zip(run.trainees.values(), trainer.adams, strict=True):
            ours = [optimizer.state[weight] for _, weight in trained.trained_weights()]
            _assert_same_moments(ours, [*adam.state.values()])
    assert (outcome.num_updates, outcome.num_skipped) == (num_updates * num_epochs, 0)


def _plain_trainer(run: TrainingRun, plain: dict[str, Any]) -> Trainer:
    """The same models in the reference's hands."""
    critic = None
    known = {key: value for key, value in plain.items() if key != "over_batch"}
    settings = Settings(rate=RATE, critic_rate=CRITIC_RATE, **known)
    if run.updater.critic is not None:
        source = copy.deepcopy(_critic(run).model)
        critic = Critic(backbone=source.backbone, head=source.score)
        settings = dataclasses.replace(
            settings,
            gamma=CRITIC.discount,
            lam=CRITIC.gae_lambda,
            value_lam=CRITIC.value_lambda,
            value_clip=CRITIC.value_clip,
            beta=PPO["kl_coefficient"],
        )
    return Trainer(copy.deepcopy(run.policy.causal_lm), settings, critic)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minibatches of grpo", "ppo", "ppo with whitening"])
def test_how_groups_arrive_and_are_packed_changes_an_update_by_rounding_only(
    name: str, tmp_path: Path, model: Path
) -> None:
    loss, learner, _ = CASES[name]

    def step(chunk_sizes: tuple[int, ...], microbatch_tokens: int) -> dict[str, Tensor]:
        settings = learner | {"microbatch_tokens": microbatch_tokens, "learning_rate": RATE}
        with small_run(_config(tmp_path, model, loss, **settings), _broker(chunk_sizes)) as run:
            start.update(weights_of(run.policy) | _critic_weights(run))
            _step(run)
            return weights_of(run.policy) | _critic_weights(run)

    start: dict[str, Tensor] = {}
    whole = step((NUM_GROUPS,), 1 << 16)
    for chunk_sizes, microbatch_tokens in (((1,), 20), ((2, 1), 50)):
        _assert_same_way(step(chunk_sizes, microbatch_tokens), whole, start)


def test_without_groups_of_siblings_a_critic_still_teaches(tmp_path: Path, model: Path) -> None:
    config = _config(tmp_path, model, PPO, critic=CRITIC, group_size=1)
    with small_run(config, FakeBroker(random_rollout(VOCAB_SIZE), 1, chunk_sizes=(3,))) as run:
        outcome = _step(run)
        assert outcome.is_taken
        assert outcome.grad_norm > 0


def test_in_its_warm_up_the_critic_learns_and_the_policy_stays(tmp_path: Path, model: Path) -> None:
    settings = dataclasses.replace(CRITIC, warmup_steps=2, value_clip=0.0, value_lambda=1.0)
    with small_run(_config(tmp_path, model, PPO, critic=settings)) as run:
        start, losses = weights_of(run.policy), []
        for policy_step in range(3):
            outcome = _step(run, policy_step)
            losses.append(outcome.sums["value_loss"])
            run.channel.handed_over.clear()  # type: ignore[attr-defined] # of the fake broker
            moved = any(
                not torch.equal(weight, start[name])
                for name, weight in weights_of(run.policy).items()
            )
            assert moved == (policy_step == 2)
            assert (outcome.grad_norm > 0) == (policy_step == 2)
            assert outcome.mean("entropy") is not None
    assert losses[1] < losses[0]


def test_the_critics_rate_follows_the_policys_schedule(tmp_path: Path, model: Path) -> None:
    with small_run(_config(tmp_path, model, PPO, critic=CRITIC, warmup_steps=4)) as run:
        _step(run, 1)
        assert run.optimizer.param_groups[0]["lr"] == pytest.approx(RATE / 2)
        assert _critic(run).optimizer.param_groups[0]["lr"] == pytest.approx(CRITIC_RATE / 2)


def _poisoned(*places: tuple[int, int]) -> FakeBroker:
    """Rewards of these answers overflow the gradient norm in float32."""
    return _broker(reward=lambda *place: 1e38 if place in places else reward_of(*place))


@pytest.mark.parametrize("poisoned_update", [0, 1])
def test_the_first_update_decides_on_the_batch_and_a_later_one_for_itself(
    poisoned_update: int, tmp_path: Path, model: Path
) -> None:
    place = PLACES[_parts(2, 1)[poisoned_update][0]]
    loss = PPO | {"kl_coefficient": 0.0}
    config = _config(tmp_path, model, loss, critic=CRITIC, updates_per_batch=2)
    with small_run(config, _poisoned(place)) as run:
        start = weights_of(run.policy) | _critic_weights(run)
        outcome = _step(run)
        now = weights_of(run.policy) | _critic_weights(run)
        has_moved = any(not torch.equal(now[name], start[name]) for name in start)
        assert all(torch.isfinite(weight).all() for weight in now.values())
        steps = {float(state["step"]) for state in run.optimizer.state.values()}
    assert outcome.is_taken == has_moved == (poisoned_update == 1)
    assert steps == {float(poisoned_update)}
    if poisoned_update == 1:
        assert (outcome.num_updates, outcome.num_skipped) == (1, 1)
        assert outcome.loss == outcome.loss


def test_masked_tokens_are_left_out_of_advantages_and_returns(tmp_path: Path, model: Path) -> None:
    """A masked beginning changes nothing for what comes after it but what the policy is taught."""

    def documents(masks: Masks) -> dict[RolloutId, Document]:
        config = _config(tmp_path, model, PPO, critic=dataclasses.replace(CRITIC, whiten=True))
        with small_run(config, _broker((NUM_GROUPS,), masks=masks)) as run:
            batch = run.updater.start_batch(0)
            chunk = run.source.next_chunk(run.lineage, 0, held=())
            assert isinstance(chunk, Chunk)
            run.updater.accumulate(batch, chunk)
            return dict(batch.waiting[0].documents)

    whole = documents(nothing_masked)
    masked = documents(lambda group_id, index: ((0, 2), (0,)))
    compared = 0
    for rollout_id, document in masked.items():
        full = whole[rollout_id]
        for name in ("token_advantages", "returns", "values"):
            ours, theirs = getattr(document, name), getattr(full, name)
            assert ours[2:] == pytest.approx(theirs[2:], abs=1e-6)
            assert ours[:2] == pytest.approx(0.0)
        compared += len(full.completion_token_ids) - 2
    assert compared > 10


def test_a_split_is_a_partition_that_another_step_or_pass_makes_anew() -> None:
    ids = [RolloutId(group_id=group, index=index, attempt=1) for group, index in PLACES]
    parts = split_rollouts(ids, 5, seed=(1, 2, 0))
    assert sorted(item for part in parts for item in part) == ids
    assert {len(part) for part in parts} == {2, 3}
    assert split_rollouts(ids[::-1], 5, seed=(1, 2, 0)) == parts
    others = [(2, 2, 0), (1, 3, 0), (1, 2, 1)]
    assert all(split_rollouts(ids, 5, seed=seed) != parts for seed in others)
    assert len(split_rollouts(ids[:2], 5, seed=(1,))) == 2
