"""Ways to compute that do not go together are refused before a process starts."""

from __future__ import annotations

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
        (['attention = "eager"'], r"learner\.attention: invalid enum value 'eager'"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_a_cure(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _load(tmp_path, *lines)


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
