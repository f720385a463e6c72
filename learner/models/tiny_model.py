"""A complete Hugging Face model directory with random weights, small enough for a laptop's CPU.

The demo, the tests and the benchmarks train it from scratch. It is a Qwen2, so that transformers,
FSDP and vLLM load it like any other model. Its tokenizer has one token a byte, and one for each
tag: token ids mean the same to the sampler, the verifier and the learner.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from common.errors import ConfigError, ModelDirectoryError

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
PAD_ID, EOS_ID, UNK_ID = range(3)
REASONING_TAGS = ("<think>", "</think>", "<answer>", "</answer>")

_VLLM_HEAD_SIZES = (32, 64)


@dataclass(frozen=True)
class TinyModelShape:
    """Dimensions and initial scale; ``hidden_size / num_heads`` must be 32 or 64, as vLLM wants.

    The small ``rope_theta`` tells neighbours apart better in texts of 60 tokens, and the large
    ``initializer_range`` suits narrow layers: with Qwen2's own values the same training is slower.
    """

    hidden_size: int = 128
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 4
    intermediate_size: int = 384
    max_positions: int = 256
    tie_word_embeddings: bool = False
    rope_theta: float = 100.0
    initializer_range: float = 0.08

    def __post_init__(self) -> None:
        head_size, rest = divmod(self.hidden_size, self.num_heads)
        if rest or head_size not in _VLLM_HEAD_SIZES:
            raise ConfigError(
                f"hidden_size / num_heads must be 32 or 64, got {self.hidden_size} / "
                f"{self.num_heads} (use hidden_size = {32 * self.num_heads})"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_kv_heads must divide num_heads = {self.num_heads}, got "
                f"{self.num_kv_heads} (use {self.num_heads})"
            )


DEFAULT_SHAPE = TinyModelShape()


def build_tiny_model(
    out_dir: Path | str,
    texts: Iterable[str],
    shape: TinyModelShape = DEFAULT_SHAPE,
    *,
    seed: int,
    tags: Sequence[str] = REASONING_TAGS,
) -> Path:
    """Write config, tokenizer for ``texts``, and float32 weights drawn from ``seed``.

    Returns ``out_dir``, which appears whole or not at all. The random state of the process is left
    as it was. Raises ``ModelDirectoryError`` where ``out_dir`` exists and is not empty.
    """
    target = Path(out_dir)
    _refuse_to_overwrite(target)
    tokenizer = build_tokenizer(texts, tags=tags)
    model = _random_model(_config(shape, tokenizer.get_vocab_size()), seed)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        model.save_pretrained(staging)
        _write_tokenizer(staging, tokenizer, shape.max_positions)
        staging.chmod(0o755)
        os.replace(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return target


def build_tokenizer(texts: Iterable[str], *, tags: Sequence[str] = REASONING_TAGS) -> Tokenizer:
    """One token for each tag and for each byte that ``texts`` use outside the tags.

    Ids: pad 0, eos 1, unk 2, then the tags in order, then the bytes in order. Encoding adds no
    special tokens, decoding joins without blanks: ``decode(encode(text)) == text`` for every text
    of known bytes; an unknown byte becomes ``<unk>``.
    """
    pad, eos, unk = SPECIAL_TOKENS
    symbols = [pad, eos, unk, *tags, *_byte_symbols(texts, tags)]
    vocabulary = {symbol: token_id for token_id, symbol in enumerate(symbols)}
    # Byte-level BPE without merges: for Qwen2, AutoTokenizer keeps this vocabulary and replaces the
    # rest of the pipeline by its own, and only without merges do both cut every text alike.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    return tokenizer


def _byte_symbols(texts: Iterable[str], tags: Sequence[str]) -> list[str]:
    """The printable stand-ins of the bytes in ``texts``, as byte-level tokenizers write them."""
    tag = re.compile("|".join(map(re.escape, tags)) or r"(?!)")
    characters = set[str]().union(*(tag.sub("", text) for text in texts))
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
        "".join(sorted(characters))
    )
    return sorted(set("".join(piece for piece, _ in pieces)))


def _refuse_to_overwrite(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelDirectoryError(
            f"a new model needs a new directory, {target} exists (remove it or name another)"
        )


def _config(shape: TinyModelShape, vocab_size: int) -> Any:
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=shape.tie_word_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        initializer_range=shape.initializer_range,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        dtype="float32",
    )


def _random_model(config: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config).to(torch.float32)
    model.generation_config = GenerationConfig(
        pad_token_id=PAD_ID, eos_token_id=EOS_ID, do_sample=True, temperature=1.0, top_k=0
    )
    return model


def _write_tokenizer(directory: Path, tokenizer: Tokenizer, max_length: int) -> None:
    tokenizer.save(str(directory / "tokenizer.json"))
    pad, eos, unk = SPECIAL_TOKENS
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "eos_token": eos,
        "unk_token": unk,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
