"""Ways to compute that do not go together are refused before a process starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.config import Config
from common.config_loader import load_config
from common.errors import ConfigError


def _load(folder: Path, *lines: str) -> Config:
    file = folder / "run.toml"
    file.write_text(
        '[run]\ndirectory = "run"\n[model]\npath = "model"\n'
        '[prompts]\ngenerator = "chain-addition"\n[learner]\n' + "\n".join(lines)
    )
    return load_config(file)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["offload_activations = true"],
            r'needs learner\.activation_checkpointing = "full", got "none"',
        ),
        (
            ["offload_activations = true", 'activation_checkpointing = "selective"'],
            r'needs learner\.activation_checkpointing = "full", got "selective"',
        ),
        (
            ["compile = true", 'activation_checkpointing = "selective"'],
            r'learner\.compile does not go with .* \(use "none"',
        ),
        (["lora.rank = -1"], r"learner\.lora\.rank must be >= 0, got -1 \(use 0 to train all"),
        (["lora.alpha = 0.0"], r"learner\.lora\.alpha must be a finite number above 0, got 0"),
        (["lora.dropout = 0.1"], r"unknown key learner\.lora\.dropout"),
        (
            ["num_ranks = 6", "context_parallel = 4"],
            r"context_parallel must divide learner\.num_ranks = 6, got 4 \(use 1, or .* = 8\)",
        ),
        (
            ["router_replay = true", "[actor]", 'engine = "transformers"'],
            r'learner\.router_replay needs actor\.engine = "vllm", .* got "transformers"',
        ),
        (
            ["router_replay = true", "compile = true"],
            r"learner\.router_replay does not go with learner\.compile = true \(set one",
        ),
        (["context_parallel = 0"], r"learner\.context_parallel must be >= 1, got 0 \(use 1 to"),
        (['attention = "eager"'], r"learner\.attention: invalid enum value 'eager'"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_a_cure(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _load(tmp_path, *lines)


def test_routing_is_replayed_for_mixtures_only_and_counts_in_the_size_of_a_rollout(
    tmp_path: Path,
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    dense = {"num_hidden_layers": 4}
    (model / "config.json").write_text(json.dumps(dense))
    plain = _load(tmp_path).max_rollout_bytes
    with pytest.raises(ConfigError, match=r"router_replay needs a mixture of experts, and .*model"):
        _load(tmp_path, "router_replay = true")
    mixture = dense | {"num_experts": 300, "num_experts_per_tok": 3}
    (model / "config.json").write_text(json.dumps(mixture))
    config = _load(tmp_path, "router_replay = true")
    assert config.max_rollout_bytes == plain + config.model.max_length * 4 * 3 * 2


def test_what_goes_together_is_read(tmp_path: Path) -> None:
    learner = _load(
        tmp_path,
        "compile = true",
        'activation_checkpointing = "full"',
        "offload_activations = true",
        "offload_optimizer = true",
        "[learner.lora]",
        "rank = 16",
        'targets = ["q_proj"]',
    ).learner
    assert (learner.lora.rank, learner.lora.alpha, learner.lora.targets) == (16, 32.0, ("q_proj",))
    assert (learner.compile, learner.offload_activations, learner.offload_optimizer) == (True,) * 3
