"""Prompts by cursor: order, epochs, limits, generators."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from broker.prompt_source import PromptSource, open_prompt_source
from common.config import CollectConfig, Config, ModelConfig, PromptsConfig, RunConfig
from common.errors import ConfigError


def _config(tmp_path: Path, seed: int = 0, **prompts: object) -> Config:
    return Config(
        run=RunConfig(directory=str(tmp_path / "run"), seed=seed),
        model=ModelConfig(path="model"),
        prompts=PromptsConfig(**prompts),  # type: ignore[arg-type] # settings of the test
    )


def _file(tmp_path: Path, size: int = 7) -> str:
    path = tmp_path / "prompts.jsonl"
    lines = (
        json.dumps({"prompt_id": f"p{n}", "prompt": "x", "task": "arithmetic", "gold": n})
        for n in range(size)
    )
    path.write_text("\n".join(lines))
    return str(path)


def _ids(source: PromptSource, start: int, stop: int) -> list[str]:
    prompts = [source.prompt_at(cursor) for cursor in range(start, stop)]
    return [prompt.prompt_id for prompt in prompts if prompt is not None]


def test_each_epoch_has_every_prompt_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    source = open_prompt_source(_config(tmp_path, file=_file(tmp_path)))
    first, second = _ids(source, 0, 7), _ids(source, 7, 14)
    assert sorted(first) == sorted(second) == [f"p{n}" for n in range(7)]
    assert first != second
    assert first != sorted(first)


def test_the_same_seed_gives_the_same_prompt_at_the_same_cursor_in_a_new_process(
    tmp_path: Path,
) -> None:
    file = _file(tmp_path)
    one = open_prompt_source(_config(tmp_path, file=file))
    other = open_prompt_source(_config(tmp_path, file=file))
    assert _ids(other, 9, 20) == _ids(one, 0, 20)[9:]
    third = open_prompt_source(_config(tmp_path, seed=1, file=file))
    assert _ids(third, 0, 20) != _ids(one, 0, 20)


def test_without_shuffle_the_file_is_read_in_order_again_and_again(tmp_path: Path) -> None:
    source = open_prompt_source(_config(tmp_path, file=_file(tmp_path, 2), shuffle=False))
    assert _ids(source, 0, 5) == ["p0", "p1", "p0", "p1", "p0"]


def test_a_limit_ends_the_source(tmp_path: Path) -> None:
    source = open_prompt_source(_config(tmp_path, file=_file(tmp_path), limit=3))
    assert len(_ids(source, 0, 10)) == 3
    assert source.prompt_at(3) is None


def test_a_collect_run_answers_each_prompt_of_a_file_once(tmp_path: Path) -> None:
    config = _config(tmp_path, file=_file(tmp_path))
    collect = replace(
        config, run=replace(config.run, kind="collect"), collect=CollectConfig(num_prompts=100)
    )
    assert len(_ids(open_prompt_source(collect), 0, 200)) == 7


def test_a_generator_streams_problems_with_their_gold_answer(tmp_path: Path) -> None:
    source = open_prompt_source(_config(tmp_path, generator="chain-addition"))
    prompt = source.prompt_at(12345)
    assert prompt is not None
    total = sum(int(term) for term in prompt.text.rstrip("=").split("+"))
    assert json.loads(prompt.reference_json) == {"gold": str(total)}
    assert prompt.task == "arithmetic"
    assert source.prompt_at(12345) == prompt


def test_options_reach_the_generator_and_unknown_ones_are_named(tmp_path: Path) -> None:
    three = open_prompt_source(
        _config(tmp_path, generator="chain-addition", options={"num_terms": 3})
    ).prompt_at(0)
    assert three is not None
    assert three.text.count("+") == 2
    with pytest.raises(ConfigError, match=r"prompts\.options\.terms .*num_terms"):
        open_prompt_source(_config(tmp_path, generator="chain-addition", options={"terms": 3}))


def test_held_out_prompts_are_finite_and_are_no_training_prompts(tmp_path: Path) -> None:
    held_out = open_prompt_source(
        _config(tmp_path, generator="chain-addition", split="held-out", limit=50)
    )
    train = open_prompt_source(_config(tmp_path, generator="chain-addition"))
    assert len(set(_ids(held_out, 0, 100))) == 50
    assert set(_ids(held_out, 0, 50)).isdisjoint(_ids(train, 0, 500))


def test_a_held_out_split_without_a_number_of_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set prompts\.limit"):
        open_prompt_source(_config(tmp_path, generator="chain-addition", split="held-out"))


def test_a_misspelt_generator_is_met_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'chain-adition' is not registered \(did you mean"):
        open_prompt_source(_config(tmp_path, generator="chain-adition"))
