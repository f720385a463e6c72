"""Rules of [prompts] and of sampling by difficulty: each says rule, value and cure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.config import Config
from common.config_loader import load_config, to_toml
from common.errors import ConfigError
from common.metrics import METRICS

BASE = """
[run]
directory = "run"
[model]
path = "model"
"""
TWO_SETS = """
[[prompts.sets]]
name = "math"
file = "data/math.jsonl"
weight = 3.0
epochs = 2
[[prompts.sets]]
name = "sums"
generator = "chain-addition"
options = {num_terms = 4}
"""


def _load(folder: Path, text: str) -> Config:
    path = folder / "run.toml"
    path.write_text(BASE + text)
    return load_config(path)


def _error(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        _load(folder, text)
    return str(caught.value)


def test_sets_are_read_with_paths_from_the_folder_of_the_file(tmp_path: Path) -> None:
    math, sums = _load(tmp_path, TWO_SETS).prompts.all_sets
    assert (math.name, math.weight, math.epochs) == ("math", 3.0, 2)
    assert math.file == str(tmp_path / "data" / "math.jsonl")
    assert (sums.weight, sums.file, sums.options) == (1.0, "", {"num_terms": 4})


def test_the_keys_of_a_single_source_are_the_set_default(tmp_path: Path) -> None:
    text = '[prompts]\nfile = "a.jsonl"\nshuffle = false\nlimit = 9\nepochs = 3\n'
    (only,) = _load(tmp_path, text).prompts.all_sets
    assert (only.name, only.file) == ("default", str(tmp_path / "a.jsonl"))
    assert (only.shuffle, only.limit, only.epochs) == (False, 9, 3)


def test_the_resolved_configuration_of_sets_reads_back_the_same(tmp_path: Path) -> None:
    config = _load(tmp_path, TWO_SETS)
    printed = tmp_path / "printed.toml"
    printed.write_text(to_toml(config))
    assert load_config(printed) == config


_SUMS = '[prompts]\ngenerator = "chain-addition"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[prompts]\nfile = "a.jsonl"\nlimit = 3\n' + TWO_SETS,
            "[[prompts.sets]] takes the place of file, generator and their keys, got also "
            "prompts.file, prompts.limit (move them into a set)",
        ),
        (TWO_SETS.replace('"sums"', '"math"'), "names of their own, got 'math' twice (rename one)"),
        (
            TWO_SETS.replace('file = "data/math.jsonl"', ""),
            "[prompts.sets 'math'] needs exactly one of file and generator, got neither",
        ),
        (TWO_SETS.replace("3.0", "0.0"), "weight must be a finite number above 0, got 0.0"),
        (TWO_SETS.replace("3.0", "inf"), "weight must be a finite number above 0, got inf"),
        (TWO_SETS.replace('"math"', '"my set"'), "name must be up to 64 letters"),
        (TWO_SETS.replace("epochs = 2", "limit = -1"), "'math'.limit must be >= 0, got -1"),
        (TWO_SETS + "epochs = 2", "'sums'.epochs is for files and held-out lists, got 2"),
        (_SUMS + "epochs = 1", "prompts.epochs is for files and held-out lists, got 1"),
        (_SUMS + "limit = -1", "prompts.limit must be >= 0, got -1 (use 0 for no limit)"),
        (_SUMS + "retire_pass_rate = 1.0", "with endless generators only"),
        (TWO_SETS + "[prompts]\nretire_pass_rate = 1.5", "must be within 0..1, got 1.5"),
        (TWO_SETS + "[prompts]\nretire_after = 0", "must be within 1..254, got 0 (use 2)"),
        (
            "".join(f'[[prompts.sets]]\nname = "s{n}"\nfile = "f"\n' for n in range(33)),
            "prompts.sets must be at most 32, got 33 (join some files)",
        ),
        (TWO_SETS + "[learner]\nmax_dropped_batches = -1", "max_dropped_batches must be >= 0"),
    ],
)
def test_a_broken_rule_says_rule_value_and_cure(tmp_path: Path, text: str, message: str) -> None:
    assert message in _error(tmp_path, text)


def test_dynamic_sampling_is_refused_where_nothing_is_trained(tmp_path: Path) -> None:
    text = TWO_SETS + "[learner]\ndynamic_sampling = true\n"
    assert _load(tmp_path, text).learner.dynamic_sampling
    with pytest.raises(
        ConfigError, match=r"learner\.dynamic_sampling must be false in a collect run"
    ):
        load_config(tmp_path / "run.toml", {"run.kind": "collect"})


PAGE = Path(__file__).resolve().parents[3] / "docs" / "prompts.md"


def test_the_examples_on_the_page_about_prompts_are_valid(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 3
    sets, sampling, retirement = (_load(tmp_path, example) for example in examples)
    assert [item.name for item in sets.prompts.all_sets] == ["math", "sums"]
    assert sampling.learner.dynamic_sampling
    assert retirement.prompts.retire_pass_rate == 1.0


def test_the_metrics_on_the_page_about_prompts_exist() -> None:
    named = set(re.findall(r"`(headrace_[a-z_]+)", PAGE.read_text(encoding="utf-8")))
    assert named <= {spec.name for spec in METRICS}
    assert len(named) == 7
