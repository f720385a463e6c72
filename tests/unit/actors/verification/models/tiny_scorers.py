"""Tiny classifiers and policies on disk, with seeded weights and one token a byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.config import VerifierModelConfig
from learner.models.tiny_model import EOS_ID, PAD_ID, build_tokenizer

LETTERS = "".join(map(chr, range(32, 127))) + "\n"
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_scorer(
    directory: Path, *, num_labels: int = 1, family: str = "Qwen2", seed: int = 0, head: str = ""
) -> Any:
    """Save a classifier (``head`` ``Token`` or ``Sequence``) with its tokenizer; returns it."""
    import transformers

    save_tokenizer(directory)
    config = getattr(transformers, f"{family}Config")(
        **_dimensions(), num_labels=num_labels, dtype="float32"
    )
    torch.manual_seed(seed)
    kind = getattr(transformers, f"{family}For{head or 'Sequence'}Classification")
    model = kind(config).float().eval()
    model.save_pretrained(directory)
    return model


def save_policy(directory: Path, *, seed: int = 0) -> Any:
    """Save a causal language model with its tokenizer; returns it."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    save_tokenizer(directory)
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**_dimensions(), dtype="float32")).float().eval()
    model.save_pretrained(directory)
    return model


def save_tokenizer(directory: Path) -> None:
    """One token a printable ASCII character, the reasoning tags and the turns of a chat."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer([LETTERS])
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "<eos>", "pad_token": "<pad>", "chat_template": CHAT}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def plain(kind: Any, directory: Path, **settings: Any) -> VerifierModelConfig:
    """The table of one scoring model with the plain template, on the CPU."""
    return VerifierModelConfig(
        kind=kind, path=str(directory), template="plain", device="cpu", **settings
    )


def random_tokens(lengths: Sequence[int], seed: int, *, start: Sequence[int] = ()) -> list[Any]:
    """Sequences of these lengths that all begin with ``start``."""
    random = np.random.default_rng(seed)
    return [
        np.concatenate(
            [
                np.array(start, dtype=np.int32),
                random.integers(7, 90, length - len(start), dtype=np.int32),
            ]
        )
        for length in lengths
    ]


def _dimensions() -> dict[str, Any]:
    return {
        "vocab_size": 106,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "initializer_range": 0.15,
        "pad_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
        "bos_token_id": None,
    }
