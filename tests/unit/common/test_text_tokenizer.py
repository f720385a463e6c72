"""Reading a model directory's tokenizer, exact text both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from common.errors import ModelDirectoryError
from common.text_tokenizer import TextTokenizer


def _save_tokenizer(directory: Path) -> None:
    symbols = ["<pad>", "<eos>", "<think>", "</think>", "<end>", *"0123456789+= "]
    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(
        [AddedToken(symbol, special=True) for symbol in ("<pad>", "<eos>", "<think>", "</think>")]
    )
    tokenizer.save(str(directory / "tokenizer.json"))


def _write(directory: Path, name: str, content: object) -> None:
    (directory / name).write_text(json.dumps(content), encoding="utf-8")


def test_decoding_drops_end_and_padding_only_and_encoding_adds_nothing(tmp_path: Path) -> None:
    _save_tokenizer(tmp_path)
    _write(tmp_path, "config.json", {"eos_token_id": 1, "pad_token_id": 0})
    tokenizer = TextTokenizer.load(tmp_path)
    text = "<think>7+2 = 9</think>"
    token_ids = tokenizer.encode(text)
    assert token_ids == [2, 12, 15, 7, 17, 16, 17, 14, 3]
    assert tokenizer.decode([0, 0, *token_ids, 1, 0]) == text
    assert tokenizer.vocab_size == 18


def test_end_tokens_are_united_over_the_three_files_in_their_order(tmp_path: Path) -> None:
    _save_tokenizer(tmp_path)
    _write(tmp_path, "generation_config.json", {"eos_token_id": [4, 1]})
    _write(tmp_path, "config.json", {"eos_token_id": 1, "pad_token_id": None})
    _write(
        tmp_path,
        "tokenizer_config.json",
        {"eos_token": {"content": "<think>"}, "pad_token": "<pad>"},
    )
    tokenizer = TextTokenizer.load(tmp_path)
    assert tokenizer.eos_token_ids == (4, 1, 2)
    assert tokenizer.pad_token_ids == (0,)


def test_a_directory_without_settings_has_no_end_tokens(tmp_path: Path) -> None:
    _save_tokenizer(tmp_path)
    tokenizer = TextTokenizer.load(tmp_path)
    assert (tokenizer.eos_token_ids, tokenizer.pad_token_ids) == ((), ())
    assert tokenizer.decode([1, 0]) == "<eos><pad>"


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"must hold tokenizer\.json"):
        TextTokenizer.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", b"{}"), ("config.json", b"{"), ("generation_config.json", b"[1]")],
)
def test_a_malformed_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    _save_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelDirectoryError, match=name.replace(".", r"\.")):
        TextTokenizer.load(tmp_path)
