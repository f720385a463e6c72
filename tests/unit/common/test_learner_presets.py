"""Presets give the published numbers, and whatever the file says wins over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from common.config import Config, LearnerConfig
from common.config_loader import load_config, to_toml
from common.errors import ConfigError
from common.learner_presets import PRESETS

RUN = """
[run]
directory = "out"

[model]
path = "base"
max_length = 40000

[prompts]
generator = "countdown"
"""


def preset(name: str, folder: Path, more: str = "", **overrides: object) -> Config:
    file = folder / "run.toml"
    file.write_text(f'{RUN}[learner]\npreset = "{name}"\n{more}')
    return load_config(file, {key.replace("__", "."): value for key, value in overrides.items()})


def value_of(config: Config, key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


R1_ZERO = {
    "learner.learning_rate": 3e-6,
    "learner.loss.kl_coefficient": 0.001,
    "learner.loss.kl_estimator": "k3",
    "learner.loss.kl_in": "loss",
    "learner.loss.aggregation": "sequence",
    "learner.loss.ratio_level": "token",
    "learner.loss.proximal": "behavior",
    "learner.loss.correction": "none",
    "actor.temperature": 1.0,
    "actor.max_tokens": 32768,
    "learner.group_size": 16,
    "learner.groups_per_step": 32,
    "learner.reference_reset_every": 400,
}
PUBLISHED: dict[str, dict[str, object]] = {
    "r1-zero": R1_ZERO | {"learner.num_steps": 10400},
    "r1-stage-1": R1_ZERO | {"learner.loss.clip_low": 10.0, "learner.loss.clip_high": 10.0},
    "r1-stage-2": R1_ZERO
    | {
        "learner.loss.clip_low": 10.0,
        "learner.loss.clip_high": 10.0,
        "actor.temperature": 0.7,
        "learner.num_steps": 1700,
    },
    "r1-zero-qwen-32b": R1_ZERO | {"learner.learning_rate": 2e-6},
    "deepseek-math": {
        "learner.learning_rate": 1e-6,
        "learner.loss.kl_coefficient": 0.04,
        "learner.loss.kl_estimator": "k3",
        "learner.group_size": 64,
        "actor.max_tokens": 1024,
        "learner.max_policy_lag": 0,
        "learner.loss.aggregation": "sequence",
    },
    "dapo": {
        "learner.loss.clip_low": 0.2,
        "learner.loss.clip_high": 0.28,
        "learner.loss.aggregation": "token",
        "learner.loss.kl_coefficient": 0.0,
        "learner.dynamic_sampling": True,
        "learner.group_size": 16,
        "actor.max_tokens": 20480,
    },
    "dr-grpo": {
        "learner.loss.advantage_std": "none",
        "learner.loss.aggregation": "constant",
        "learner.loss.kl_coefficient": 0.0,
        "learner.group_size": 8,
        "actor.max_tokens": 3000,
    },
    "gspo": {
        "learner.loss.ratio_level": "sequence-mean",
        "learner.loss.clip_low": 3e-4,
        "learner.loss.clip_high": 4e-4,
        "learner.loss.aggregation": "sequence",
    },
    "cispo": {"learner.loss.surrogate": "cispo", "learner.loss.aggregation": "token"},
    "icepop": {
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
    "reinforce++": {
        "learner.loss.baseline": "batch-mean",
        "learner.loss.advantage_over": "batch",
        "learner.loss.kl_in": "reward",
        "learner.loss.kl_estimator": "k1",
    },
    "reinforce++-baseline": {
        "learner.loss.baseline": "group-mean",
        "learner.loss.advantage_over": "batch",
        "learner.loss.kl_in": "loss",
        "learner.loss.kl_estimator": "k2",
    },
    "ppo": {
        "learner.learning_rate": 1e-6,
        "learner.critic.learning_rate": 1e-5,
        "learner.critic.gae_lambda": 1.0,
        "learner.loss.baseline": "critic",
        "learner.loss.kl_coefficient": 0.001,
        "learner.loss.kl_in": "reward",
        "learner.groups_per_step": 256,
        "learner.group_size": 1,
        "learner.updates_per_batch": 4,
        "actor.max_tokens": 1024,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_resolves_to_the_published_numbers(name: str, tmp_path: Path) -> None:
    config = preset(name, tmp_path)
    assert {key: value_of(config, key) for key in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "batch", "outstanding"),
    [("r1-zero", 512, 8192), ("dapo", 512, 8192), ("deepseek-math", 1024, 1024)],
)
def test_batches_and_answers_under_way_are_the_published_ones(
    name: str, batch: int, outstanding: int, tmp_path: Path
) -> None:
    config = preset(name, tmp_path)
    assert config.rollouts_per_step == batch
    assert config.max_outstanding_groups * config.group_size == outstanding


def test_r1_zeros_steps_over_its_questions_are_its_epochs(tmp_path: Path) -> None:
    config = preset("r1-zero", tmp_path)
    assert config.learner.num_steps * config.learner.groups_per_step / 1.6 == 208_000


def test_what_the_file_says_wins(tmp_path: Path) -> None:
    config = preset("r1-zero", tmp_path, "group_size = 4\n[learner.loss]\nkl_coefficient = 0.01\n")
    assert (config.learner.group_size, config.learner.loss.kl_coefficient) == (4, 0.01)
    assert config.learner.groups_per_step == 32


def test_an_override_of_the_command_line_wins(tmp_path: Path) -> None:
    assert preset("dapo", tmp_path, actor__max_tokens=256).actor.max_tokens == 256


def test_an_override_may_choose_the_preset(tmp_path: Path) -> None:
    assert preset("", tmp_path, learner__preset="dapo").learner.loss.clip_high == 0.28


def test_a_preset_that_was_written_out_reads_back_as_itself(tmp_path: Path) -> None:
    config = preset("r1-stage-2", tmp_path, "group_size = 4\n")
    again = tmp_path / "again.toml"
    again.write_text(to_toml(config))
    assert load_config(again) == config


def test_without_a_preset_every_key_keeps_its_default(tmp_path: Path) -> None:
    assert preset("", tmp_path).learner == LearnerConfig()


def test_an_unknown_preset_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learner\.preset: invalid enum value 'r2'"):
        preset("r2", tmp_path)


def test_a_section_of_a_wrong_type_is_still_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learner\.loss: expected `object`, got `int`"):
        preset("r1-zero", tmp_path, "loss = 3\n")


def test_the_key_knows_exactly_the_presets_there_are() -> None:
    names = get_args(get_type_hints(LearnerConfig)["preset"])
    assert set(names) == {"", *PRESETS} == {"", *PUBLISHED}
