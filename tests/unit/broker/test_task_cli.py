"""``headrace task``: what it writes is what the readers read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker.tasks.cli import task
from common.errors import ConfigError, FatalError
from common.prompt_file import PromptFile


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(task, list(arguments), catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_prompts_are_a_valid_prompt_file_and_repeatable(tmp_path: Path) -> None:
    for out in ("one.jsonl", "two.jsonl"):
        _run("chain-addition", "--count", "20", "--seed", "3", "--out", str(tmp_path / out))
    prompts = PromptFile(tmp_path / "one.jsonl")
    assert len(prompts) == 20
    assert prompts[0].task == "arithmetic"
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_a_problem_that_comes_twice_in_its_stream_stands_once_in_the_file(tmp_path: Path) -> None:
    out = tmp_path / "few.jsonl"
    few = ("chain-addition", "--option", "num_terms=3", "--out", str(out))
    _run(*few, "--count", "400")
    assert len(PromptFile(out)) == 400
    with pytest.raises(ConfigError, match=r"has too few training problems for --count 800, found"):
        _run(*few, "--count", "800")


def test_held_out_prompts_are_not_training_prompts(tmp_path: Path) -> None:
    held_out, train = tmp_path / "held-out.jsonl", tmp_path / "train.jsonl"
    _run("chain_addition", "--count", "30", "--split", "held-out", "--out", str(held_out))
    _run("chain_addition", "--count", "30", "--out", str(train))
    ids = [
        {json.loads(line)["prompt_id"] for line in path.read_text().splitlines()}
        for path in (held_out, train)
    ]
    assert len(ids[0]) == 30
    assert ids[0].isdisjoint(ids[1])


def test_a_corpus_has_prompts_and_completions_with_the_share_of_long_ones_asked_for(
    tmp_path: Path,
) -> None:
    out = tmp_path / "corpus.jsonl"
    common = ("chain-addition", "--kind", "corpus", "--count", "25", "--out", str(out))
    _run(*common, "--long-share", "1.0")
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 25
    assert all(set(record) == {"prompt", "completion"} for record in records)
    assert all("<think></think>" not in record["completion"] for record in records)
    _run(*common, "--option", "num_terms=9")
    assert all(line.count("+") >= 8 for line in out.read_text().splitlines())


def test_a_corpus_of_held_out_problems_is_refused(tmp_path: Path) -> None:
    output = _run(
        "chain-addition", "--kind", "corpus", "--split", "held-out", "--count", "5",
        "--out", str(tmp_path / "x"),
    )  # fmt: skip
    assert "would train on the evaluation set" in output
    assert not (tmp_path / "x").exists()


def test_an_unknown_task_and_an_unwritable_place_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'chess' is not registered"):
        _run("chess", "--count", "1", "--out", str(tmp_path / "x"))
    (tmp_path / "file").write_text("")
    with pytest.raises(FatalError, match="cannot be written"):
        _run("chain-addition", "--count", "1", "--out", str(tmp_path / "file" / "x"))
