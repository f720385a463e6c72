"""The learner's commands: what they make, and one clear line when they cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.errors import ModelDirectoryError, PromptFileError
from common.text_tokenizer import TextTokenizer
from learner.cli import sft, tiny_model
from learner.models.model import load_policy
from tests.unit.learner.small_run import ALONE

_SFT = """
[run]
directory = "run"
[model]
path = "base"
max_length = 64
[prompts]
generator = "chain-addition"
[actor]
max_tokens = 32
[sft]
corpus = "corpus.jsonl"
output = "out"
num_steps = 2
warmup_steps = 0
batch_size = 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pairs = [{"prompt": f"{n}+1=", "completion": f"<think></think>{n + 1}"} for n in range(4)]
    lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
    (tmp_path / "corpus.jsonl").write_text(lines)
    (tmp_path / "sft.toml").write_text(_SFT)
    return tmp_path


def _make_base(folder: Path) -> None:
    arguments = ["--corpus", str(folder / "corpus.jsonl"), "--out", str(folder / "base")]
    sizes = ["--hidden-size", "32", "--num-layers", "1", "--max-positions", "64"]
    done = CliRunner().invoke(tiny_model, [*arguments, *sizes], catch_exceptions=False)
    assert done.exit_code == 0


def test_tiny_model_knows_every_character_of_its_corpus(folder: Path) -> None:
    _make_base(folder)
    tokenizer = TextTokenizer.load(folder / "base")
    assert tokenizer.decode(tokenizer.encode("3+1=<think></think>4")) == "3+1=<think></think>4"
    assert load_policy(folder / "base", ALONE, max_length=64).vocab_size == tokenizer.vocab_size


def test_sft_writes_the_model_that_the_configuration_names(folder: Path) -> None:
    _make_base(folder)
    done = CliRunner().invoke(sft, [str(folder / "sft.toml")], catch_exceptions=False)
    assert done.exit_code == 0
    assert (folder / "out/model.safetensors").is_file()


def test_sft_names_a_missing_model_and_a_broken_line(folder: Path) -> None:
    with pytest.raises(ModelDirectoryError, match="tokenizer"):
        CliRunner().invoke(sft, [str(folder / "sft.toml")], catch_exceptions=False)
    _make_base(folder)
    with open(folder / "corpus.jsonl", "a") as file:
        file.write("{}\n")
    with pytest.raises(PromptFileError, match=r"corpus\.jsonl:5"):
        CliRunner().invoke(sft, [str(folder / "sft.toml")], catch_exceptions=False)
