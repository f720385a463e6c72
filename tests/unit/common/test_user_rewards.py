"""Rewards of the user's own: named in the run file, found and checked without being run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from common.config import RewardWeight
from common.config_loader import load_config, to_toml
from common.errors import ConfigError
from common.user_rewards import function_problems, split_function, with_function

_GOOD = "def score(completion, *, prompt, reference):\n    return 1.0\n"


def _problems(module: str) -> list[str]:
    term = RewardWeight(name="mine", module=module)
    return [str(problem) for problem in function_problems([term])]


def _file(tmp_path: Path, source: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(source, encoding="utf-8")
    return f"{path}:score"


@pytest.mark.parametrize(
    "source",
    [
        _GOOD,
        "def score(completion: str, *, prompt: str, reference: dict) -> float: return 1.0",
        "def score(text, prompt, reference): return 1.0",
        "def score(text, /, prompt, reference): return 1.0",
        "def score(text, **fields): return 1.0",
        "def score(*texts, prompt, reference): return 1.0",
        "def score(text, *, reference, prompt, scale=2): return 1.0",
        "import torch_that_is_not_there\n" + _GOOD,
        "raise SystemExit('checking must not run this')\n" + _GOOD,
    ],
)
def test_a_function_that_can_be_called_is_accepted_without_running_its_file(
    source: str, tmp_path: Path
) -> None:
    assert _problems(_file(tmp_path, source)) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def scores(completion, *, prompt, reference): ...", "no function 'score'.*mean scores?"),
        ("score = 3", "no function 'score' at its top level"),
        ("class A:\n  def score(self): ...", "no function 'score' at its top level"),
        ("def score(): ...", "mine.py:1: score must take the completion first"),
        ("\ndef score(completion): ...", "mine.py:2: score must take prompt and reference by name"),
        ("def score(completion, *, prompt): ...", "must take reference by name"),
        ("def score(prompt, reference): ...", "must take prompt by name"),
        ("def score(completion, prompt, reference, tokenizer): ...", "asks for 'tokenizer'"),
        ("def score(completion, *, prompt, reference, k): ...", "asks for 'k'"),
        ("async def score(completion, *, prompt, reference): ...", "must not be async"),
        ("def score(completion,\n  *, prompt", "mine.py:1: not valid Python"),
        ("def score(completion, *, prompt, reference):\n  return 1 +\n", "mine.py:2: not valid"),
        ("\x00", "mine.py:1: not valid Python"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_with_file_and_line(
    source: str, message: str, tmp_path: Path
) -> None:
    (problem,) = _problems(_file(tmp_path, source))
    assert problem.startswith("verifier.rewards: mine: ")
    assert re.search(message, problem), problem


def test_a_file_or_module_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "No such file" in _problems(f"{tmp_path}/mine.py:score")[0]
    assert "no module 'no_such_package'" in _problems("no_such_package.rewards:score")[0]
    assert "no module 'json.rewards'" in _problems("json.rewards:score")[0]
    assert "json/__init__.py: has no function 'score'" in _problems("json:score")[0]
    assert "no module 'rewards/mine'" in _problems("rewards/mine:score")[0]


def test_a_module_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "own_package_of_rewards"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "mine.py").write_text(_GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert _problems("own_package_of_rewards.mine:score") == []
    assert "own_package_of_rewards" not in sys.modules


@pytest.mark.parametrize("module", ["mine.py", ":score", "mine.py:", "mine.py:two words", "a:b-c"])
def test_a_name_of_another_form_is_refused(module: str) -> None:
    with pytest.raises(ConfigError, match="must be file.py:function"):
        split_function(module)


def test_a_term_names_a_function_or_a_kind(tmp_path: Path) -> None:
    term = RewardWeight(name="mine", module="mine.py:score", kind="math")
    with pytest.raises(ConfigError, match="module takes the place of kind"):
        with_function(term, tmp_path)


_RUN = """
[run]
directory = "run"
[model]
path = "model"
[prompts]
generator = "chain-addition"
[verifier]
rewards = [
  {name = "accuracy"},
  {name = "mine", module = "rewards/mine.py:score", weight = 0.5, options = {scale = 2}},
]
"""


def test_the_file_is_taken_from_the_folder_of_the_run_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(_RUN)
    term = load_config(tmp_path / "run.toml").verifier.rewards[1]
    module = f"{tmp_path}/rewards/mine.py:score"
    assert (term.module, term.kind, term.weight) == (module, "function", 0.5)
    assert term.options == {"scale": 2, "reward_function": module}


def test_the_resolved_configuration_names_the_same_function(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(_RUN)
    config = load_config(tmp_path / "run.toml")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "again.toml").write_text(to_toml(config))
    assert load_config(elsewhere / "again.toml").verifier.rewards == config.verifier.rewards
