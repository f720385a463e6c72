"""``headrace check`` on generated puzzles and on rewards of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from common.reasoning_gym_catalog import is_installed
from deploy.check_command import check

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"

_RUN = """
[run]
directory = "run"
[model]
path = "model"
[prompts]
generator = "{generator}"
options = {{ {options} }}
[verifier]
rewards = [{{ name = "accuracy" }}, {{ name = "mine", module = "mine.py:score" }}]
"""
_REWARD = "def score(completion, *, prompt, reference): return 1.0"

needs_tasks = pytest.mark.skipif(not is_installed(), reason="needs reasoning-gym")


def _complaints(
    folder: Path, generator: str, options: str = "", reward: str = _REWARD
) -> list[str]:
    """What is wrong besides the missing model."""
    (folder / "run.toml").write_text(_RUN.format(generator=generator, options=options))
    (folder / "mine.py").write_text(reward)
    result = CliRunner().invoke(check, [str(folder / "run.toml")])
    assert result.exit_code == 1
    return [line for line in result.stderr.splitlines() if "model.path" not in line]


@needs_tasks
def test_the_example_is_valid_up_to_its_model() -> None:
    result = CliRunner().invoke(check, [str(EXAMPLES / "puzzles-cpu.toml")])
    assert "prompt set sums: endless, 0.25 of the draws" in result.stdout
    (line,) = result.stderr.splitlines()
    assert "model.path: no such directory" in line


@needs_tasks
@pytest.mark.parametrize(
    ("generator", "options", "message"),
    [
        ("reasoning-gym:chain_sums", "", "no dataset 'chain_sums' (did you mean 'chain_sum'?)"),
        ("reasoning-gym:chain_sum", "min_term = 3", "did you mean 'min_terms'?"),
        ("reasoning-gym:chain_sum", "min_terms = 9, max_terms = 3", "refuses min_terms = 9"),
    ],
)
def test_an_unknown_dataset_or_option_is_found_before_the_run(
    generator: str, options: str, message: str, tmp_path: Path
) -> None:
    (line,) = _complaints(tmp_path, generator, options)
    assert message in line


@needs_tasks
def test_options_may_be_lists(tmp_path: Path) -> None:
    options = 'operators = ["+"], min_terms = 3, max_terms = 3'
    assert _complaints(tmp_path, "reasoning-gym:basic_arithmetic", options) == []


def test_a_reward_that_cannot_be_called_is_found_before_the_run(tmp_path: Path) -> None:
    (line,) = _complaints(tmp_path, "chain-addition", reward="def score(completion): return 1.0")
    assert "verifier.rewards: mine: " in line
    assert "mine.py:1: score must take prompt and reference by name" in line
    assert _complaints(tmp_path, "chain-addition", reward=_REWARD) == []
