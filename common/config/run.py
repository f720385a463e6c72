"""What a run is: its name, its model, who may take part, and runs that only collect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What this run is called and where it keeps its state."""

    directory: str
    """Run directory: journal, checkpoints, weights, telemetry. Relative to the config file."""
    id: str = "run"
    """Name in logs, metrics and ids: letters, digits, '-', '_' and '.'."""
    seed: int = 0
    """Seeds prompt order, initialisation and sampling."""
    kind: Literal["train", "collect"] = "train"
    """``train`` ends in a learner, ``collect`` in a collector (evaluation, sampling)."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model that is trained and sampled."""

    path: str
    """Hugging Face model directory (config.json, safetensors, tokenizer.json)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Element type of published weights and of the engine."""
    max_length: int = 2048
    """Longest prompt plus completion, in tokens."""


@dataclass(frozen=True, kw_only=True)
class SecurityConfig:
    """Who may take part."""

    keys: str = ""
    """Directory of CURVE keys made by ``headrace keys``; without one, only local sockets."""


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """A run whose consumer writes metrics or data instead of training."""

    output: str = ""
    """Directory for results."""
    num_prompts: int = 512
    """Prompts to answer."""
    samples_per_prompt: int = 4
    """Completions for each prompt."""
