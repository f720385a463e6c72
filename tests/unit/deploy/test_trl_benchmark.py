"""The benchmark beside TRL: both sides get the same, and the verdict follows from the numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from actors.verification.arithmetic import judge_arithmetic
from common.config_loader import load_config, to_toml
from deploy.bench.curves import compare_curves
from deploy.bench.trl import Lap, result_of, rewards_at
from deploy.bench.trl_race import Race, headrace_config
from learner.studies.trl_study import accuracy, accuracy_rewards, trainer_arguments

RACE = Race(seeds=(0, 1))


def _lap(step_s: float, *rewards: float, start_s: float = 30.0) -> Lap:
    ends = tuple(start_s + step_s * (number + 1) for number in range(len(rewards)))
    steps = tuple(float(number) for number in range(len(rewards)))
    return Lap(rewards=rewards, sampled_at=steps, ends_s=ends, wall_s=ends[-1] + 5.0)


@pytest.mark.parametrize(
    "completion",
    [
        "<think>1+2=3</think><answer>3</answer>",
        "<answer>3.0</answer>",
        "<answer>4</answer>",
        "<answer>three</answer>",
        "<think>so <answer>3</answer>",
        "\\boxed{3}",
        "3",
        "",
    ],
)
def test_trls_reward_is_the_verifiers(completion: str) -> None:
    judged = judge_arithmetic(completion, '{"gold": "3"}').value
    assert accuracy(completion, "3") == judged
    assert accuracy_rewards([completion, completion], ["3", "5"])[0] == judged


def test_what_has_a_counterpart_is_set_alike(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(to_toml(headrace_config(tmp_path, RACE, seed=1)), encoding="utf-8")
    ours = load_config(file)
    theirs = trainer_arguments(
        {
            "seed": 1,
            "num_steps": RACE.num_steps,
            "groups_per_step": RACE.groups_per_step,
            "group_size": RACE.group_size,
            "max_tokens": RACE.max_tokens,
            "learning_rate": RACE.learning_rate,
        }
    )
    learner, loss = ours.learner, ours.learner.loss
    answers = learner.groups_per_step * learner.group_size
    assert theirs["per_device_train_batch_size"] == answers
    assert theirs["num_generations"] == learner.group_size
    assert theirs["max_completion_length"] == ours.actor.max_tokens
    assert theirs["temperature"] == ours.actor.temperature
    assert theirs["learning_rate"] == learner.learning_rate
    assert (theirs["adam_beta1"], theirs["adam_beta2"]) == learner.betas
    assert theirs["weight_decay"] == learner.weight_decay
    assert theirs["max_grad_norm"] == learner.max_grad_norm
    assert theirs["warmup_steps"] == learner.warmup_steps
    assert theirs["max_steps"] == learner.num_steps
    assert theirs["epsilon"] == loss.clip_low == loss.clip_high
    assert theirs["beta"] == loss.kl_coefficient
    assert (theirs["loss_type"], loss.aggregation) == ("dapo", "token")
    assert (theirs["scale_rewards"], loss.advantage_std) == ("group", "sample")
    assert (loss.proximal, loss.correction, loss.advantage_epsilon) == ("behavior", "none", 1e-4)
    assert not ours.prompts.shuffle
    assert not theirs["shuffle_dataset"]


def test_the_start_takes_no_part_in_the_ratio() -> None:
    laps = {
        "headrace": [_lap(1.0, 0.1, 0.2, 0.3, start_s=100.0)] * 2,
        "trl": [_lap(3.0, 0.1, 0.2, 0.3, start_s=10.0)] * 2,
    }
    result = result_of(RACE, laps, {1: 3.0})
    assert result.ratio == pytest.approx(3.0)
    assert result.passed
    assert result.details["ratios_with_start"] == pytest.approx([24 / 108] * 2)


def test_faster_with_other_rewards_is_not_passed() -> None:
    ours = [_lap(1.0, 0.1, 0.2, 0.3), _lap(1.0, 0.1, 0.21, 0.31)]
    theirs = [_lap(3.0, 0.1, 0.2, 0.5), _lap(3.0, 0.1, 0.2, 0.51)]
    result = result_of(RACE, {"headrace": ours, "trl": theirs}, {1: 3.0})
    assert result.ratio == pytest.approx(3.0)
    assert not result.passed


def test_a_curve_that_is_right_by_updates_but_late_by_steps_is_not_passed() -> None:
    theirs = _lap(3.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    late = replace(_lap(1.0, 0.1, 0.1, 0.1, 0.2, 0.3, 0.4), sampled_at=(0.0, 0.0, 0.0, 1, 2, 3))
    result = result_of(RACE, {"headrace": [late] * 2, "trl": [theirs] * 2}, {1: 3.0})
    by_update = compare_curves([late.rewards] * 2, [rewards_at(late, theirs)] * 2)
    assert all(third.agree for third in by_update)
    assert not result.passed


def test_a_batch_is_compared_with_the_policy_that_sampled_it() -> None:
    """Two updates back at most, none before the first."""
    theirs = _lap(1.0, 0.1, 0.3, 0.5, 0.7)
    ours = replace(theirs, sampled_at=(0.0, 0.0, 0.5, 1.0))
    assert rewards_at(ours, theirs) == pytest.approx([0.1, 0.1, 0.2, 0.3])


def test_slower_is_not_passed() -> None:
    ours, theirs = [_lap(1.0, 0.1, 0.2, 0.3)] * 2, [_lap(1.4, 0.1, 0.2, 0.3)] * 2
    assert not result_of(RACE, {"headrace": ours, "trl": theirs}, {1: 3.0}).passed


def test_thirds_are_compared_by_the_difference_of_each_seed() -> None:
    ours = [[0.1, 0.1, 0.5, 0.5, 0.9, 0.9], [0.3, 0.3, 0.5, 0.5, 0.9, 0.9]]
    theirs = [[0.1, 0.1, 0.4, 0.4, 0.8, 0.8], [0.3, 0.3, 0.6, 0.6, 0.8, 0.8]]
    first, middle, last = compare_curves(ours, theirs)
    assert (first.first_step, middle.first_step, last.first_step) == (0, 2, 4)
    assert first.agree
    assert (first.difference, first.half_width) == pytest.approx((0.0, 0.0))
    assert middle.agree
    assert middle.half_width == pytest.approx(12.706 * 0.1)  # differences 0.1 and -0.1
    assert not last.agree


def test_curves_that_are_too_short_say_so() -> None:
    with pytest.raises(ValueError, match="at least 3 steps, got 2"):
        compare_curves([[0.1, 0.2]], [[0.1, 0.2, 0.3]])
