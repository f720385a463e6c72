"""Rules of [[verifier.models]]: each says rule, value and cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import VerifierModelConfig
from common.config_loader import load_config, to_toml
from common.errors import ConfigError

BASE = """
[run]
directory = "run"
[model]
path = "model"
[prompts]
generator = "chain-addition"
"""
SAFETY = """
[[verifier.models]]
kind = "safety"
path = "models/safety"
"""
JUDGE = """
[[verifier.models]]
kind = "judge"
url = "http://127.0.0.1:8000/v1"
model = "big"
directory = "judge"
"""


def _load(folder: Path, text: str) -> tuple[VerifierModelConfig, ...]:
    path = folder / "run.toml"
    path.write_text(BASE + text)
    return load_config(path).verifier.models


def test_paths_are_taken_from_the_folder_of_the_file(tmp_path: Path) -> None:
    safety, judge = _load(tmp_path, SAFETY + JUDGE)
    assert safety.path == str(tmp_path / "models" / "safety")
    assert judge.directory == str(tmp_path / "judge")
    assert (safety.directory, judge.path) == ("", "")


def test_the_resolved_file_says_the_same(tmp_path: Path) -> None:
    models = _load(tmp_path, SAFETY + JUDGE)
    written = tmp_path / "resolved.toml"
    written.write_text(to_toml(load_config(tmp_path / "run.toml")))
    assert load_config(written).verifier.models == models


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SAFETY + SAFETY, r"name each kind once, got 2 of 'safety' \(keep one\)"),
        ('[[verifier.models]]\nkind = "helpful"\n', r"models\[0\]\.path must name the model"),
        (SAFETY + 'device = "gpu"\n', r"device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        (SAFETY + "max_tokens = 0\n", r"max_tokens must be >= 1, got 0 \(use 8192\)"),
        (SAFETY + "minimum = inf\n", r"minimum must be a finite number, got inf \(use 0\.0\)"),
        (SAFETY + 'kinds = "x"\n', r"run\.toml:\d+: unknown key verifier\.models\.kinds .*kind\?"),
        (JUDGE.replace("http:", "zmq:"), r"url must be the base of an OpenAI-compatible"),
        (JUDGE.replace('model = "big"', ""), r"model must name a model of the endpoint"),
        (JUDGE.replace('directory = "judge"', ""), r"directory must name a folder for cache"),
        (JUDGE + "max_tokens = 0\n", r"max_tokens must be >= 1, got 0 \(use 8192\)"),
        (JUDGE + "minimum = nan\n", r"minimum must be a finite number, got nan"),
        ('[verifier]\ninside_thought = "yes"\n', r"verifier\.inside_thought: .*'yes'"),
        (JUDGE + "timeout_s = 0.0\n", r"timeout_s must be a finite number above 0, got 0\.0"),
        (JUDGE + "attempts = 0\n", r"attempts must be >= 1, got 0"),
        (JUDGE + "concurrency = 0\n", r"concurrency must be >= 1, got 0"),
        ("[verifier]\nmodel_batch_tokens = 0\n", r"model_batch_tokens must be >= 1, got 0"),
        ("[verifier]\nmodel_batch_limit_s = 0.0\n", r"model_batch_limit_s must be a finite number"),
    ],
)
def test_a_broken_rule_is_named_with_its_cure(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _load(tmp_path, text)
