"""Published settings of training by name: what ``learner.preset`` puts where the file says nothing.

Sources, by preset: ``r1-zero``, ``r1-stage-1``, ``r1-stage-2``: DeepSeek-R1, Nature 645, 633-638
(2025), Methods; ``r1-zero-qwen-32b``: its supplement; ``deepseek-math``: arXiv 2402.03300, section
4.2; ``dapo``: arXiv 2503.14476, section 4.1; ``dr-grpo``: arXiv 2503.20783; ``gspo``: arXiv
2507.18071, section 5.1; ``cispo``: arXiv 2506.13585; ``icepop``: arXiv 2510.18855; ``rloo``: arXiv
2402.14740; ``reinforce++``: arXiv 2501.03262; ``ppo``: arXiv 1707.06347 with the numbers of
TinyZero's countdown script and gamma = lambda = 1 (DeepSeek-R1, supplement A.3).

R1-Zero and DAPO sample 8,192 answers and take 16 steps of 512 on them; here each step has 512 of
its own, and ``max_policy_lag`` 15 keeps (15 + 1) x 512 = 8,192 outstanding, as far from the policy
as the sixteenth step was. What was not published is left at its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COUPLED = {"learner.loss.proximal": "behavior", "learner.loss.correction": "none"}
"""The papers clip pi / pi_old, where pi_old sampled."""

_GRPO = {
    **_COUPLED,
    "learner.loss.aggregation": "sequence",
    "learner.loss.kl_estimator": "k3",
    "learner.loss.kl_in": "loss",
}

_R1_ZERO = {
    **_GRPO,
    "learner.learning_rate": 3e-6,
    "learner.loss.kl_coefficient": 0.001,
    "learner.group_size": 16,
    "learner.groups_per_step": 32,
    "learner.max_policy_lag": 15,
    "actor.temperature": 1.0,
    "actor.max_tokens": 32768,
}

_R1_STAGE_1 = {
    **_R1_ZERO,
    "learner.loss.clip_low": 10.0,
    "learner.loss.clip_high": 10.0,
    "learner.reference_reset_every": 400,
}

_REINFORCE_PLUS_PLUS = {
    **_COUPLED,
    "learner.loss.aggregation": "token",
    "learner.loss.advantage_over": "batch",
    "learner.loss.kl_in": "reward",
    "learner.loss.kl_estimator": "k1",
}

PRESETS: dict[str, dict[str, Any]] = {
    "r1-zero": {
        **_R1_ZERO,
        "learner.num_steps": 10400,
        "learner.reference_reset_every": 400,
    },
    "r1-stage-1": _R1_STAGE_1,
    "r1-stage-2": {
        **_R1_STAGE_1,
        "actor.temperature": 0.7,
        "learner.num_steps": 1700,
    },
    "r1-zero-qwen-32b": {
        **_R1_ZERO,
        "learner.learning_rate": 2e-6,
        "learner.reference_reset_every": 400,
    },
    "deepseek-math": {
        **_GRPO,
        "learner.learning_rate": 1e-6,
        "learner.loss.kl_coefficient": 0.04,
        "learner.group_size": 64,
        "learner.groups_per_step": 16,
        "learner.max_policy_lag": 0,
        "actor.max_tokens": 1024,
    },
    "dapo": {
        **_COUPLED,
        "learner.learning_rate": 1e-6,
        "learner.loss.clip_low": 0.2,
        "learner.loss.clip_high": 0.28,
        "learner.loss.aggregation": "token",
        "learner.loss.kl_coefficient": 0.0,
        "learner.dynamic_sampling": True,
        "learner.group_size": 16,
        "learner.groups_per_step": 32,
        "learner.max_policy_lag": 15,
        "actor.temperature": 1.0,
        "actor.max_tokens": 20480,
    },
    "dr-grpo": {
        **_COUPLED,
        "learner.loss.aggregation": "constant",
        "learner.loss.advantage_std": "none",
        "learner.loss.kl_coefficient": 0.0,
        "learner.group_size": 8,
        "actor.max_tokens": 3000,
    },
    "gspo": {
        **_COUPLED,
        "learner.loss.ratio_level": "sequence-mean",
        "learner.loss.clip_low": 3e-4,
        "learner.loss.clip_high": 4e-4,
        "learner.loss.aggregation": "sequence",
        "learner.loss.kl_coefficient": 0.0,
    },
    "cispo": {
        **_COUPLED,
        "learner.loss.surrogate": "cispo",
        "learner.loss.clip_low": 1.0,
        "learner.loss.aggregation": "token",
        "learner.loss.kl_coefficient": 0.0,
    },
    "icepop": {
        "learner.loss.proximal": "policy",
        "learner.loss.correction": "mask",
        "learner.loss.importance_floor": 0.5,
        "learner.loss.importance_cap": 5.0,
    },
    "rloo": {
        "learner.loss.surrogate": "reinforce",
        "learner.loss.aggregation": "constant",
        "learner.loss.baseline": "leave-one-out",
        "learner.loss.advantage_std": "none",
    },
    "reinforce++": {**_REINFORCE_PLUS_PLUS, "learner.loss.baseline": "batch-mean"},
    "reinforce++-baseline": {
        **_REINFORCE_PLUS_PLUS,
        "learner.loss.baseline": "group-mean",
        "learner.loss.kl_in": "loss",
        "learner.loss.kl_estimator": "k2",
    },
    "ppo": {
        "learner.learning_rate": 1e-6,
        "learner.critic.learning_rate": 1e-5,
        "learner.critic.discount": 1.0,
        "learner.critic.gae_lambda": 1.0,
        "learner.critic.whiten": True,
        "learner.loss.baseline": "critic",
        "learner.loss.aggregation": "token",
        "learner.loss.kl_coefficient": 0.001,
        "learner.loss.kl_in": "reward",
        "learner.loss.kl_estimator": "k1",
        "learner.group_size": 1,
        "learner.groups_per_step": 256,
        "learner.updates_per_batch": 4,
        "learner.max_policy_lag": 0,
        "actor.temperature": 1.0,
        "actor.max_tokens": 1024,
    },
}
"""Preset -> dotted key -> value."""


def apply_preset(table: dict[str, Any]) -> None:
    """Put the values of the table's ``learner.preset`` under every key that is missing in it.

    Unknown names and tables of a wrong type are left for the check of types to refuse.
    """
    learner = table.get("learner")
    if not isinstance(learner, Mapping):
        return
    preset = learner.get("preset")
    for key, value in PRESETS.get(preset, {}).items() if isinstance(preset, str) else ():
        *parents, last = key.split(".")
        section: Any = table
        for parent in parents:
            section = section.setdefault(parent, {}) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.setdefault(last, value)
