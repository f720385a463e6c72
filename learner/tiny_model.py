"""A complete Hugging Face model directory with random weights, small enough for a laptop's CPU.

The demo, the tests and the benchmarks train it from scratch. It is a Qwen2, so that transformers,
FSDP and vLLM load it like any other model; its tokenizer has one token a character, and one token
for each tag, so that token ids mean the same to the sampler, the verifier and the learner.
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

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from common.errors import ConfigError, ModelDirectoryError

PAD_TOKEN = "<pad>"
EOS_TOKEN = "<eos>"
PAD_ID = 0
EOS_ID = 1
REASONING_TAGS = ("<think>", "</think>", "<answer>", "</answer>")

_VLLM_HEAD_SIZES = (32, 64)


@dataclass(frozen=True)
class TinyModelShape:
    """Dimensions of the model; ``hidden_size / num_heads`` must be 32 or 64, sizes vLLM serves."""

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    intermediate_size: int = 384
    max_positions: int = 256
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

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


def alphabet_of(texts: Iterable[str], *, tags: Sequence[str] = REASONING_TAGS) -> str:
    """Every character that ``texts`` use outside ``tags``, each once, sorted."""
    tag = re.compile("|".join(map(re.escape, tags)) or r"(?!)")
    return "".join(sorted(set().union(*(tag.sub("", text) for text in texts))))


def build_tokenizer(alphabet: str, *, tags: Sequence[str] = REASONING_TAGS) -> Tokenizer:
    """One token a character and a tag; ids: pad 0, eos 1, then ``tags``, then ``alphabet``.

    Encoding adds no special tokens and raises on a character outside ``alphabet``; decoding joins
    without blanks, so ``decode(encode(text)) == text``.
    """
    symbols = [PAD_TOKEN, EOS_TOKEN, *tags, *alphabet]
    if len(set(symbols)) != len(symbols):
        raise ConfigError(f"alphabet must name each character once, got {alphabet!r}")
    vocabulary = {symbol: token_id for token_id, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(PAD_TOKEN, special=True), AddedToken(EOS_TOKEN, special=True)])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    return tokenizer


def build_tiny_model(
    out_dir: Path,
    alphabet: str,
    shape: TinyModelShape | None = None,
    *,
    seed: int,
    tags: Sequence[str] = REASONING_TAGS,
) -> Path:
    """Write config, float32 weights drawn from ``seed``, and tokenizer; return ``out_dir``.

    The directory appears whole or not at all. The process's random state is left as it was.
    Raises ``ModelDirectoryError`` where ``out_dir`` already exists and is not empty.
    """
    out_dir = Path(out_dir)
    _refuse_to_overwrite(out_dir)
    tokenizer = build_tokenizer(alphabet, tags=tags)
    model = _random_model(_config(shape or TinyModelShape(), tokenizer.get_vocab_size()), seed)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
    try:
        model.save_pretrained(staging)
        _write_tokenizer(staging, tokenizer, model.config.max_position_embeddings)
        staging.chmod(0o755)
        os.replace(staging, out_dir)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return out_dir


def _refuse_to_overwrite(out_dir: Path) -> None:
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ModelDirectoryError(
            f"a new model needs a new directory, {out_dir} already exists (remove it or name "
            "another)"
        )


def _config(shape: TinyModelShape, vocab_size: int) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=shape.tie_word_embeddings,
        initializer_range=shape.initializer_range,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        dtype="float32",
    )


def _random_model(config: Qwen2Config, seed: int) -> Qwen2ForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config).to(torch.float32)
    model.generation_config = GenerationConfig(
        pad_token_id=PAD_ID, eos_token_id=EOS_ID, do_sample=True, temperature=1.0, top_k=0
    )
    return model


def _write_tokenizer(directory: Path, tokenizer: Tokenizer, max_length: int) -> None:
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD_TOKEN,
        "eos_token": EOS_TOKEN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
