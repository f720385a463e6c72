"""Combinations of the objective's keys that mean nothing are refused with a cure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from common.config import (
    Config,
    CriticConfig,
    LearnerConfig,
    LossConfig,
    ModelConfig,
    RewardWeight,
    RunConfig,
    VerifierConfig,
)
from common.loss_config_rules import loss_rules


def broken_rules(learner: dict[str, Any] | None = None, /, **loss: Any) -> list[str]:
    config = Config(
        run=RunConfig(directory="out"),
        model=ModelConfig(path="base"),
        learner=LearnerConfig(loss=LossConfig(**loss), **(learner or {})),
    )
    return list(loss_rules(config))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"importance_cap": 0.0}, 'above 0, got 0.0 (use 2; correction = "none" turns'),
        ({"importance_cap": float("inf")}, "finite number above 0, got inf"),
        (
            {"correction": "mask", "importance_floor": 2.5},
            "below learner.loss.importance_cap (2.0)",
        ),
        ({"correction": "mask", "importance_floor": -1.0}, "must be >= 0"),
        ({"importance_floor": 0.5}, "belongs to correction"),
        ({"proximal": "behavior"}, 'set learner.loss.correction = "none"'),
        ({"surrogate": "reinforce", "proximal": "interpolated"}, "has no ratio to anchor"),
        ({"dual_clip": 1.1}, "must be 0 or above 1 + learner.loss.clip_high (1.2), got 1.1"),
        ({"dual_clip": 3.0, "surrogate": "cispo"}, 'belongs to surrogate = "clip"'),
        ({"advantage_epsilon": -1e-6}, "advantage_epsilon must be a finite number >= 0"),
        ({"max_divergence": float("nan")}, "max_divergence must be a finite number >= 0"),
        ({"entropy_coefficient": float("inf")}, "entropy_coefficient must be finite"),
        ({"baseline": "batch-mean"}, 'set learner.loss.advantage_over = "batch"'),
    ],
)
def test_a_meaningless_combination_says_rule_value_and_cure(
    loss: dict[str, Any], message: str
) -> None:
    (rule,) = broken_rules(**loss)
    assert message in rule


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"proximal": "behavior", "correction": "none"},
        {"correction": "mask", "importance_floor": 0.5, "importance_cap": 5.0},
        {"dual_clip": 3.0},
        {"entropy_coefficient": -0.01},
        {"baseline": "batch-mean", "advantage_over": "batch"},
        {"surrogate": "reinforce"},
    ],
)
def test_what_a_paper_asks_for_is_allowed(loss: dict[str, Any]) -> None:
    assert broken_rules(**loss) == []


SEVERAL: dict[str, Any] = {"updates_per_batch": 2}


@pytest.mark.parametrize(
    ("learner", "loss", "message"),
    [
        ({"updates_per_batch": 257}, {}, "an answer for each update of a batch of 256, got 257"),
        (SEVERAL, {"surrogate": "reinforce"}, "does not notice that the policy moves"),
        ({"epochs_per_batch": 2}, {"surrogate": "reinforce"}, "does not notice"),
        (SEVERAL, {"proximal": "interpolated"}, 'set learner.loss.proximal = "policy"'),
        ({"group_size": 1}, {}, "learner.group_size must be >= 2, got 1"),
        ({"critic": CriticConfig(discount=0.9)}, {}, 'belongs to learner.loss.baseline = "critic"'),
        ({"critic": CriticConfig(discount=1.1)}, {"baseline": "critic"}, "discount must be 0 to 1"),
        (
            {"critic": CriticConfig(gae_lambda=-0.1)},
            {"baseline": "critic"},
            "gae_lambda must be 0 to 1, got -0.1 (use 1)",
        ),
        ({}, {"baseline": "critic", "advantage_over": "batch"}, "learner.critic.whiten = true"),
        (
            {"group_size": 1, "dynamic_sampling": True},
            {"baseline": "critic"},
            "set learner.dynamic_sampling = false",
        ),
    ],
)
def test_what_a_critic_and_several_updates_cannot_do_is_refused(
    learner: dict[str, Any], loss: dict[str, Any], message: str
) -> None:
    (rule,) = broken_rules(learner, **loss)
    assert message in rule


def _process_rules(learner: LearnerConfig, *names: str) -> list[str]:
    config = Config(
        run=RunConfig(directory="out"),
        model=ModelConfig(path="base"),
        learner=learner,
        verifier=VerifierConfig(rewards=tuple(RewardWeight(name=name) for name in names)),
    )
    return list(loss_rules(config))


PROCESS = LossConfig(supervision="process")


@pytest.mark.parametrize(
    ("learner", "names", "message"),
    [
        (
            LearnerConfig(loss=PROCESS),
            ("accuracy",),
            'must be the one term "process", got accuracy',
        ),
        (LearnerConfig(loss=PROCESS), ("process", "format"), "got process, format"),
        (
            LearnerConfig(loss=replace(PROCESS, baseline="leave-one-out")),
            ("process",),
            'set learner.loss.baseline = "group-mean"',
        ),
        (
            LearnerConfig(loss=replace(PROCESS, advantage_over="batch")),
            ("process",),
            'set learner.loss.advantage_over = "group"',
        ),
        (LearnerConfig(loss=PROCESS, dynamic_sampling=True), ("process",), "set it to false"),
    ],
)
def test_rewards_of_steps_need_a_process_model_and_a_group(
    learner: LearnerConfig, names: tuple[str, ...], message: str
) -> None:
    (rule,) = _process_rules(learner, *names)
    assert message in rule


def test_process_supervision_with_a_process_model_is_allowed() -> None:
    assert _process_rules(LearnerConfig(loss=PROCESS), "process") == []


@pytest.mark.parametrize(
    ("learner", "loss"),
    [
        ({"group_size": 1, "groups_per_step": 256} | SEVERAL, {"baseline": "critic"}),
        (SEVERAL, {"proximal": "behavior", "correction": "none"}),
        (SEVERAL, {"advantage_over": "batch"}),
        ({"epochs_per_batch": 4}, {"kl_in": "reward", "kl_coefficient": 0.1}),
    ],
)
def test_ppo_and_minibatches_of_any_clipped_objective_are_allowed(
    learner: dict[str, Any], loss: dict[str, Any]
) -> None:
    assert broken_rules(learner, **loss) == []
