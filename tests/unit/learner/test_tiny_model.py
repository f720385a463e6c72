"""The tiny model: a complete directory that others load, and a tokenizer that loses nothing."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.errors import ConfigError, ModelDirectoryError
from learner.models.tiny_model import (
    EOS_ID,
    PAD_ID,
    UNK_ID,
    TinyModelShape,
    build_tiny_model,
    build_tokenizer,
)

SMALL = TinyModelShape(
    hidden_size=64, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=96
)
TEXTS = (
    "7+2+9=<think>7+2=9,9+9=18</think><answer>18</answer>",
    "1+3+4+5+6=<think></think><answer>19</answer>",
    "80=",
)


def _weights(model_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(model_dir / "model.safetensors")


def test_ids_are_special_tokens_then_tags_then_the_bytes_of_the_texts_in_order() -> None:
    vocabulary = build_tokenizer(TEXTS).get_vocab()
    assert sorted(vocabulary, key=vocabulary.__getitem__) == [
        *("<pad>", "<eos>", "<unk>"),
        *("<think>", "</think>", "<answer>", "</answer>"),
        *"+,0123456789=",
    ]
    assert sorted(vocabulary.values()) == list(range(20))


def test_a_tag_is_one_token_and_every_other_character_is_one_token() -> None:
    encoding = build_tokenizer(TEXTS).encode("<think>9+9=18</think>")
    assert encoding.tokens == ["<think>", *"9+9=18", "</think>"]


@pytest.mark.parametrize("text", [*TEXTS, "==++,,", "", "<answer><answer>1"])
def test_decoding_gives_back_the_text_without_added_blanks(text: str) -> None:
    tokenizer = build_tokenizer(TEXTS)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_texts_of_many_bytes_per_character_come_back_whole() -> None:
    tokenizer = build_tokenizer(["née à 東\n"], tags=())
    ids = tokenizer.encode("à née\n東").ids
    assert tokenizer.decode(ids) == "à née\n東"
    assert UNK_ID not in ids


def test_an_unknown_character_is_marked_and_not_dropped() -> None:
    assert build_tokenizer(TEXTS).encode("7x").ids[1] == UNK_ID


def test_special_tokens_are_left_out_of_decoded_text_on_request() -> None:
    tokenizer = build_tokenizer(TEXTS)
    ids = [*tokenizer.encode("18").ids, EOS_ID, PAD_ID]
    assert tokenizer.decode(ids) == "18"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "18<eos><pad>"


def test_transformers_reads_the_same_ids_as_the_tokenizer_file(tmp_path: Path) -> None:
    model_dir = build_tiny_model(tmp_path / "model", TEXTS, SMALL, seed=0)
    from_file = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    automatic = AutoTokenizer.from_pretrained(model_dir)
    assert len(automatic) == 20
    assert (automatic.pad_token_id, automatic.eos_token_id) == (PAD_ID, EOS_ID)
    for text in (*TEXTS, "==++,,<think><think>"):
        ids = from_file.encode(text).ids
        assert automatic.encode(text) == ids
        assert automatic.decode(ids) == text


def test_transformers_loads_the_float32_weights_that_were_written(tmp_path: Path) -> None:
    model_dir = build_tiny_model(tmp_path / "model", TEXTS, SMALL, seed=0)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    written = _weights(model_dir)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == dict.fromkeys(
        written, torch.float32
    )
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in written.items())
    assert model.generation_config.eos_token_id == EOS_ID
    assert model.generation_config.pad_token_id == PAD_ID


def test_the_config_holds_the_asked_shape(tmp_path: Path) -> None:
    model_dir = build_tiny_model(tmp_path / "model", TEXTS, SMALL, seed=0)
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert (config["hidden_size"], config["num_hidden_layers"]) == (64, 1)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)
    assert (config["vocab_size"], config["max_position_embeddings"]) == (20, 256)
    assert config["rope_parameters"]["rope_theta"] == 100.0
    assert (config["pad_token_id"], config["eos_token_id"]) == (PAD_ID, EOS_ID)


def test_initial_weights_have_the_asked_spread(tmp_path: Path) -> None:
    shape = TinyModelShape(num_layers=1, initializer_range=0.05)
    weights = _weights(build_tiny_model(tmp_path / "model", TEXTS, shape, seed=0))
    spread = float(weights["model.layers.0.mlp.up_proj.weight"].std())
    assert spread == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_model_has_no_output_matrix_of_its_own(tmp_path: Path, tied: bool) -> None:
    shape = TinyModelShape(num_layers=1, tie_word_embeddings=tied)
    weights = _weights(build_tiny_model(tmp_path / "model", TEXTS, shape, seed=0))
    assert ("lm_head.weight" in weights) is not tied


def test_the_seed_decides_every_byte_of_the_weights(tmp_path: Path) -> None:
    first, again, other = (
        build_tiny_model(tmp_path / name, TEXTS, SMALL, seed=seed) / "model.safetensors"
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_building_leaves_the_random_state_of_the_process_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    build_tiny_model(tmp_path / "model", TEXTS, SMALL, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failed_build_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("learner.models.tiny_model._write_tokenizer", fail)
    with pytest.raises(OSError, match="disk full"):
        build_tiny_model(tmp_path / "model", TEXTS, SMALL, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_only_the_finished_directory_remains_and_others_may_read_it(tmp_path: Path) -> None:
    model_dir = build_tiny_model(tmp_path / "new" / "model", TEXTS, SMALL, seed=0)
    assert list((tmp_path / "new").iterdir()) == [model_dir]
    assert stat.S_IMODE(model_dir.stat().st_mode) == 0o755


def test_an_existing_model_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ModelDirectoryError, match="exists"):
        build_tiny_model(tmp_path / "model", TEXTS, SMALL, seed=0)
    assert [item.name for item in (tmp_path / "model").iterdir()] == ["precious.txt"]


def test_a_head_size_that_vllm_does_not_serve_is_refused_with_a_cure() -> None:
    with pytest.raises(ConfigError, match=r"got 128 / 3 \(use hidden_size = 96\)"):
        TinyModelShape(num_heads=3)


def test_key_value_heads_that_do_not_divide_the_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_kv_heads must divide num_heads = 4, got 3"):
        TinyModelShape(num_kv_heads=3)
