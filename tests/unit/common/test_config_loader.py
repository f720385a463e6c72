"""A bad run file is one clear error: file, line, rule, value, cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config_loader import load_config, run_paths, to_toml
from common.errors import ConfigError

GOOD = """
[run]
directory = "out"

[model]
path = "base"

[prompts]
generator = "chain-addition"

[learner]
max_policy_lag = 2
groups_per_step = 32
group_size = 8

[[verifier.rewards]]
name = "accuracy"
"""


def error_of(file: Path, **overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, {key.replace("__", "."): value for key, value in overrides.items()})
    return str(caught.value)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "run.toml"
    file.write_text(GOOD)
    return file


def test_a_resolved_config_reads_back_as_itself(good: Path, tmp_path: Path) -> None:
    config = load_config(good)
    again = tmp_path / "again.toml"
    again.write_text(to_toml(config))
    assert load_config(again) == config


def test_relative_paths_are_taken_from_the_folder_of_the_file(good: Path, tmp_path: Path) -> None:
    config = load_config(good)
    assert config.model.path == str(tmp_path / "base")
    assert run_paths(config).journal == tmp_path / "out" / "broker" / "journal"


def test_an_override_wins_over_the_file(good: Path) -> None:
    assert load_config(good, {"learner.max_policy_lag": 5}).learner.max_policy_lag == 5


def test_derived_numbers_follow_their_formulas(good: Path) -> None:
    config = load_config(good)
    assert config.max_outstanding_groups == (2 + 1) * 32
    assert config.rollouts_per_step == 32 * 8
    collect = load_config(good, {"run.kind": "collect", "collect.samples_per_prompt": 3})
    assert collect.group_size == 3
    assert collect.max_outstanding_groups == 64


def test_an_unknown_key_names_its_line_and_the_nearest_key(good: Path) -> None:
    good.write_text(GOOD.replace("max_policy_lag", "max_polcy_lag"))
    assert error_of(good) == (
        f"{good}:12: unknown key learner.max_polcy_lag (did you mean learner.max_policy_lag?)"
    )


def test_an_unknown_section_names_its_line(good: Path) -> None:
    good.write_text(GOOD + "\n[leaner]\nnum_steps = 1\n")
    assert error_of(good).startswith(f"{good}:19: unknown key leaner (did you mean learner?)")


def test_an_unknown_key_inside_a_list_of_tables_is_found(good: Path) -> None:
    good.write_text(GOOD + "wieght = 2.0\n")
    assert (
        "unknown key verifier.rewards.wieght (did you mean verifier.rewards.weight?)"
        in error_of(good)
    )


def test_a_wrong_type_names_the_key(good: Path) -> None:
    good.write_text(GOOD.replace("group_size = 8", 'group_size = "8"'))
    assert "learner.group_size: expected `int`, got `str`" in error_of(good)


def test_a_missing_section_names_the_key(good: Path) -> None:
    good.write_text(GOOD.replace('[model]\npath = "base"\n', ""))
    assert "missing required field `model`" in error_of(good)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "learner.max_policy_lag",
            -1,
            "learner.max_policy_lag must be >= 0, got -1 (use 0 for synchronous training)",
        ),
        ("learner.group_size", 1, "learner.group_size must be >= 2, got 1"),
        ("learner.learning_rate", float("nan"), "learner.learning_rate must be a finite number"),
        ("actor.temperature", 0.0, "actor.temperature must be a finite number above 0, got 0.0"),
        ("prompts.file", "x.jsonl", "exactly one of file and generator"),
        ("prompts.generator", "", "exactly one of file and generator"),
        ("run.id", "../etc", "run.id must be up to 64 letters"),
        ("broker.endpoint", "http://x", 'broker.endpoint must be "ipc" or "tcp://host:port"'),
        ("broker.endpoint", "tcp://h:1", "neither encrypted nor authenticated (make keys with"),
        ("broker.endpoint", "tcp://127.0.0.1:1", "neither encrypted nor authenticated"),
        ("broker.dead_after_s", 1.0, "at least twice broker.heartbeat_s"),
        ("broker.metrics_port", 70000, "broker.metrics_port must be 0 to 65535"),
        ("broker.journal_segment_bytes", 1000, "broker.journal_segment_bytes must be >= 65536"),
        (
            "broker.max_journal_bytes",
            64 << 20,
            "broker.max_journal_bytes must be 0 or hold 3 segments of "
            "broker.journal_segment_bytes (201326592 bytes), got 67108864 (use 0",
        ),
        ("actor.max_tokens", 4096, "actor.max_tokens must be below model.max_length"),
    ],
)
def test_a_broken_rule_says_rule_value_and_cure(
    good: Path, key: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(good, {key: value})
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(good))


def test_broken_toml_names_the_line(good: Path) -> None:
    good.write_text("[run\n")
    assert "not valid TOML" in error_of(good)
    assert "line 1" in error_of(good)


def test_a_file_that_is_not_text_is_refused(good: Path) -> None:
    good.write_bytes(b"[run]\n\xff")
    assert "must be UTF-8, byte 6 is not" in error_of(good)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    assert "no such file" in error_of(tmp_path / "none.toml")
