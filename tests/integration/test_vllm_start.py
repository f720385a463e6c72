"""A vLLM engine that cannot serve a model directory says so in one line, before any request."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.generation.vllm_engine import VllmOptions
from actors.generation.vllm_sampler import VllmSampler
from common.errors import ModelDirectoryError
from common.types import WeightVersion
from tests.tiny_models import VOCAB_SIZE, make_tiny_qwen2


def _start(model_dir: Path, max_model_len: int = 64) -> VllmSampler:
    options = VllmOptions(model_dir=model_dir, max_model_len=max_model_len, kv_cache_bytes=64 << 20)
    return VllmSampler(options, WeightVersion(incarnation=0, policy_step=0))


@pytest.mark.slow
def test_architectures_whose_weights_cannot_be_read_back_are_refused_at_start(
    tmp_path: Path,
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB_SIZE, n_embd=64, n_layer=1, n_head=2, n_positions=64,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelDirectoryError, match="must stay readable inside the engine"):
        _start(tmp_path)


@pytest.mark.slow
def test_a_model_that_vllm_cannot_start_gives_one_clear_line(tmp_path: Path) -> None:
    make_tiny_qwen2(tmp_path, tied=False)
    with pytest.raises(ModelDirectoryError, match="its engine did not start: ") as caught:
        _start(tmp_path, max_model_len=4096)
    assert "\n" not in str(caught.value)


def test_a_missing_model_directory_is_reported_before_vllm_is_imported(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"must hold config\.json"):
        _start(tmp_path / "absent")
