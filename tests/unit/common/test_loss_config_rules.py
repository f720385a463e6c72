"""Combinations of the objective's keys that mean nothing are refused with a cure."""

from __future__ import annotations

from typing import Any

import pytest

from common.config import Config, LearnerConfig, LossConfig, ModelConfig, RunConfig
from common.loss_config_rules import loss_rules


def broken_rules(**loss: Any) -> list[str]:
    config = Config(
        run=RunConfig(directory="out"),
        model=ModelConfig(path="base"),
        learner=LearnerConfig(loss=LossConfig(**loss)),
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
