"""Models by their published dimensions, and the parts of a plan that tests start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.config import ActorConfig, Config, LearnerConfig, ModelConfig, RunConfig, WeightsConfig
from deploy.planning.architecture import architecture_of
from deploy.planning.cluster import Cluster, read_cluster
from deploy.planning.problem import Problem, make_problem

QWEN25_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
QWEN25_32B = QWEN25_7B | {
    "hidden_size": 5120,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "intermediate_size": 27648,
}
QWEN25_05B = QWEN25_7B | {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
QWEN3_06B: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
QWEN3_4B = QWEN3_06B | {
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "intermediate_size": 9728,
}
QWEN3_30B_A3B = QWEN3_06B | {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "tie_word_embeddings": False,
}
MIXTRAL_8X7B: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
LLAMA3_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
QWEN15_MOE: dict[str, Any] = {
    "model_type": "qwen2_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}


def make_config(
    *,
    max_tokens: int = 8192,
    groups_per_step: int = 64,
    group_size: int = 16,
    max_policy_lag: int = 4,
    checkpointing: str = "full",
) -> Config:
    """A run in bfloat16 whose learner recomputes layers and whose weights go by NCCL."""
    return Config(
        run=RunConfig(directory="out"),
        model=ModelConfig(path="base", dtype="bfloat16", max_length=max_tokens + 1024),
        actor=ActorConfig(max_tokens=max_tokens),
        learner=LearnerConfig(
            groups_per_step=groups_per_step,
            group_size=group_size,
            max_policy_lag=max_policy_lag,
            activation_checkpointing=checkpointing,  # type: ignore[arg-type]
        ),
        weights=WeightsConfig(backend="nccl"),
    )


def make_cluster(**options: object) -> Cluster:
    """A cluster by dotted keys, ``__`` for the dot."""
    return read_cluster(None, {key.replace("__", "."): value for key, value in options.items()})


def problem_of(
    model: dict[str, Any] = QWEN25_7B, config: Config | None = None, **options: object
) -> Problem:
    """A problem on H100 unless ``options`` say otherwise."""
    return make_problem(config or make_config(), make_cluster(**options), architecture_of(model))


def write_model(folder: Path, values: dict[str, Any]) -> None:
    """A model directory with a ``config.json`` and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
