"""The export is an ordinary model directory that others load."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.errors import CheckpointError
from learner.models.model import load_policy
from learner.models.tiny_model import TinyModelShape, build_tiny_model
from learner.publication import export
from learner.publication.export import export_model
from learner.train import take_step
from tests.unit.learner.small_run import ALONE, TEXT, small_config, small_model, small_run


def test_transformers_loads_the_trained_weights(tmp_path: Path) -> None:
    with small_run(small_config(tmp_path)) as run:
        take_step(run)
        output = tmp_path / "out"
        export_model(run.policy, ALONE, source=tmp_path / "model", output=output)
        loaded = AutoModelForCausalLM.from_pretrained(output)
        for name, weight in run.policy.trained_weights():
            assert torch.equal(loaded.get_parameter(name), weight), name
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.decode(tokenizer.encode("1+2=")) == "1+2="
    assert loaded.generation_config.eos_token_id == 1


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    shape = TinyModelShape(
        hidden_size=32,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        intermediate_size=32,
        tie_word_embeddings=True,
    )
    source = build_tiny_model(tmp_path / "tied", [TEXT], shape, seed=0)
    policy = load_policy(source, ALONE, max_length=64)
    assert "lm_head.weight" not in dict(policy.trained_weights())
    export_model(policy, ALONE, source=source, output=tmp_path / "out")
    again = load_policy(tmp_path / "out", ALONE, max_length=64)
    embedding = again.causal_lm.get_input_embeddings().weight
    assert again.causal_lm.get_output_embeddings().weight is embedding


def test_bfloat16_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    policy = load_policy(small_model(tmp_path / "model"), ALONE, max_length=64)
    export_model(
        policy, ALONE, source=tmp_path / "model", output=tmp_path / "out", dtype="bfloat16"
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    assert next(policy.parameters()).dtype == torch.float32


def test_a_failed_export_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_model(tmp_path / "model")
    policy = load_policy(source, ALONE, max_length=64)
    export_model(policy, ALONE, source=source, output=tmp_path / "out")
    before = (tmp_path / "out/model.safetensors").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        export_model(policy, ALONE, source=source, output=tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}
