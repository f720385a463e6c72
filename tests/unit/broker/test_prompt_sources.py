"""Prompts by cursor: order, epochs, limits, generators, several sets."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from broker import events
from broker.prompts.mixture import Draw, PromptSource
from broker.prompts.opening import open_prompt_source
from broker.prompts.state import PromptsState
from common.config import (
    CollectConfig,
    Config,
    ModelConfig,
    PromptsConfig,
    PromptSetConfig,
    RunConfig,
)
from common.errors import ConfigError, PromptFileError
from common.types import Prompt


def _config(tmp_path: Path, seed: int = 0, **prompts: object) -> Config:
    return Config(
        run=RunConfig(directory=str(tmp_path / "run"), seed=seed),
        model=ModelConfig(path="model"),
        prompts=PromptsConfig(**prompts),  # type: ignore[arg-type] # settings of the test
    )


def _file(tmp_path: Path, size: int = 7, name: str = "p") -> str:
    path = tmp_path / f"{name}.jsonl"
    lines = (
        json.dumps({"prompt_id": f"{name}{n}", "prompt": "x", "task": "arithmetic", "gold": n})
        for n in range(size)
    )
    path.write_text("\n".join(lines))
    return str(path)


def _draw(source: PromptSource, state: PromptsState, number: int) -> list[Draw]:
    """Up to ``number`` draws, admitted in ``state``."""
    drawn: list[Draw] = []
    while len(drawn) < number and (draw := source.draw(state)) is not None:
        if draw.mix != state.mix:
            state.on_mix_began(events.MixBegan(mix=draw.mix))
        admitted = events.Admitted(
            group_id=0, prompt=draw.prompt, size=1, cursor=draw.cursor, position=draw.position
        )
        state.on_admitted(admitted)
        drawn.append(draw)
    return drawn


def _prompts(source: PromptSource, number: int) -> list[Prompt]:
    return [draw.prompt for draw in _draw(source, PromptsState(), number)]


def _ids(source: PromptSource, number: int) -> list[str]:
    return [prompt.prompt_id for prompt in _prompts(source, number)]


def test_each_epoch_has_every_prompt_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    ids = _ids(open_prompt_source(_config(tmp_path, file=_file(tmp_path))), 14)
    assert sorted(ids[:7]) == sorted(ids[7:]) == [f"p{n}" for n in range(7)]
    assert ids[:7] != ids[7:]
    assert ids[:7] != sorted(ids[:7])


def test_the_same_seed_and_state_give_the_same_prompt_in_a_new_process(tmp_path: Path) -> None:
    file = _file(tmp_path)
    one = open_prompt_source(_config(tmp_path, file=file))
    other = open_prompt_source(_config(tmp_path, file=file))
    whole, state = _draw(one, PromptsState(), 20), PromptsState()
    assert _draw(one, state, 9) + _draw(other, state, 11) == whole
    third = open_prompt_source(_config(tmp_path, seed=1, file=file))
    assert _ids(third, 20) != _ids(one, 20)


def test_without_shuffle_the_file_is_read_in_order_again_and_again(tmp_path: Path) -> None:
    source = open_prompt_source(_config(tmp_path, file=_file(tmp_path, 2), shuffle=False))
    assert _ids(source, 5) == ["p0", "p1", "p0", "p1", "p0"]


def test_a_limit_or_a_number_of_epochs_ends_the_source(tmp_path: Path) -> None:
    limited = open_prompt_source(_config(tmp_path, file=_file(tmp_path), limit=3))
    assert len(_ids(limited, 10)) == 3
    twice = open_prompt_source(_config(tmp_path, file=_file(tmp_path), epochs=2))
    assert Counter(_ids(twice, 100)) == {f"p{n}": 2 for n in range(7)}


def test_a_single_source_is_the_set_default(tmp_path: Path) -> None:
    source = open_prompt_source(_config(tmp_path, file=_file(tmp_path)))
    assert {prompt.prompt_set for prompt in _prompts(source, 3)} == {"default"}


def test_a_collect_run_answers_each_prompt_of_a_file_once(tmp_path: Path) -> None:
    config = _config(tmp_path, file=_file(tmp_path))
    collect = replace(
        config, run=replace(config.run, kind="collect"), collect=CollectConfig(num_prompts=100)
    )
    assert len(_ids(open_prompt_source(collect), 200)) == 7


def test_a_generator_streams_problems_with_their_gold_answer(tmp_path: Path) -> None:
    source = open_prompt_source(_config(tmp_path, generator="chain-addition"))
    state = PromptsState()
    draw = _draw(source, state, 30)[-1]
    total = sum(int(term) for term in draw.prompt.text.rstrip("=").split("+"))
    assert json.loads(draw.prompt.reference_json) == {"gold": str(total)}
    assert draw.prompt.task == "arithmetic"
    assert (draw.cursor, draw.position) == (29, None)
    assert source.draw(state) == source.draw(state)


def test_options_reach_the_generator_and_unknown_ones_are_named(tmp_path: Path) -> None:
    three = open_prompt_source(
        _config(tmp_path, generator="chain-addition", options={"num_terms": 3})
    )
    assert _prompts(three, 1)[0].text.count("+") == 2
    with pytest.raises(ConfigError, match=r"prompts\.options\.terms .*num_terms"):
        open_prompt_source(_config(tmp_path, generator="chain-addition", options={"terms": 3}))


def test_held_out_prompts_are_finite_and_are_no_training_prompts(tmp_path: Path) -> None:
    held_out = open_prompt_source(
        _config(tmp_path, generator="chain-addition", split="held-out", limit=50)
    )
    train = open_prompt_source(_config(tmp_path, generator="chain-addition"))
    assert len(_ids(held_out, 100)) == len(set(_ids(held_out, 100))) == 50
    assert set(_ids(held_out, 50)).isdisjoint(_ids(train, 500))


def test_held_out_prompts_come_back_for_as_many_epochs_as_were_asked_for(tmp_path: Path) -> None:
    held_out = open_prompt_source(
        _config(tmp_path, generator="chain-addition", split="held-out", limit=5, epochs=3)
    )
    assert set(Counter(_ids(held_out, 100)).values()) == {3}


def test_a_held_out_split_without_a_number_of_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set prompts\.limit"):
        open_prompt_source(_config(tmp_path, generator="chain-addition", split="held-out"))


def test_a_misspelt_generator_is_met_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'chain-adition' is not registered \(did you mean"):
        open_prompt_source(_config(tmp_path, generator="chain-adition"))


# --- several sets ---------------------------------------------------------------------------------


def _two_sets(tmp_path: Path, *, easy_weight: float = 1.0, **easy: object) -> Config:
    sets = (
        PromptSetConfig(
            name="easy",
            weight=easy_weight,
            file=_file(tmp_path, 4, "easy"),
            **easy,  # type: ignore[arg-type] # settings of the test
        ),
        PromptSetConfig(name="hard", weight=3.0, file=_file(tmp_path, 5, "hard")),
    )
    return _config(tmp_path, sets=sets)


def test_sets_are_mixed_by_weight_and_each_keeps_its_epochs(tmp_path: Path) -> None:
    drawn = _prompts(open_prompt_source(_two_sets(tmp_path)), 80)
    assert Counter(prompt.prompt_set for prompt in drawn) == {"easy": 20, "hard": 60}
    easy = [prompt.prompt_id for prompt in drawn if prompt.prompt_set == "easy"]
    for start in range(0, 20, 4):
        assert sorted(easy[start : start + 4]) == ["easy0", "easy1", "easy2", "easy3"]


def test_a_set_that_is_used_up_drops_out_and_the_rest_goes_on(tmp_path: Path) -> None:
    drawn = _prompts(open_prompt_source(_two_sets(tmp_path, epochs=1)), 100)
    easy = [place for place, prompt in enumerate(drawn) if prompt.prompt_set == "easy"]
    assert len(easy) == 4
    assert easy[-1] < 16
    assert len(drawn) == 100


def test_other_weights_change_the_shares_and_no_cursor(tmp_path: Path) -> None:
    state = PromptsState()
    before = _draw(open_prompt_source(_two_sets(tmp_path)), state, 10)
    after = _draw(open_prompt_source(_two_sets(tmp_path, easy_weight=9.0)), state, 40)
    assert Counter(draw.prompt.prompt_set for draw in after) == {"easy": 30, "hard": 10}
    whole = _prompts(open_prompt_source(_two_sets(tmp_path)), 200)
    for name in ("easy", "hard"):
        seen = [d.prompt.prompt_id for d in [*before, *after] if d.prompt.prompt_set == name]
        expected = [prompt.prompt_id for prompt in whole if prompt.prompt_set == name]
        assert seen == expected[: len(seen)]


def test_a_collect_run_takes_its_number_of_prompts_from_all_sets_together(tmp_path: Path) -> None:
    config = _two_sets(tmp_path)
    collect = replace(
        config, run=replace(config.run, kind="collect"), collect=CollectConfig(num_prompts=6)
    )
    ids = _ids(open_prompt_source(collect), 100)
    assert len(ids) == len(set(ids)) == 6


# --- changed sets ---------------------------------------------------------------------------------


def _opened(config: Config, state: PromptsState) -> PromptsState:
    for name, fingerprint in open_prompt_source(config).opened(state):
        state.on_set_opened(events.PromptSetOpened(name=name, fingerprint=fingerprint))
    return state


def test_a_changed_file_is_refused_with_both_contents_and_a_cure(tmp_path: Path) -> None:
    config = _config(tmp_path, file=_file(tmp_path, 7))
    state = _opened(config, PromptsState())
    _opened(config, state)
    _file(tmp_path, 8)
    with pytest.raises(PromptFileError) as caught:
        _opened(config, state)
    message = str(caught.value)
    assert "it was [7 prompts, blake2b" in message
    assert f"{config.prompts.file} is [8 prompts, blake2b" in message
    assert "restore it" in message


def test_an_edited_prompt_is_a_change_and_a_blank_line_or_line_end_is_none(
    tmp_path: Path,
) -> None:
    config = _config(tmp_path, file=_file(tmp_path, 7))
    state = _opened(config, PromptsState())
    path = Path(config.prompts.file)
    text = path.read_text()
    path.write_text(text.replace("\n", "\r\n\n") + "\n\n")
    _opened(config, state)
    path.write_text(text.replace('"gold": 3', '"gold": 4'))
    with pytest.raises(PromptFileError, match="has changed"):
        _opened(config, state)


def test_another_order_is_a_change_and_other_weights_and_limits_are_none(tmp_path: Path) -> None:
    state = _opened(_two_sets(tmp_path), PromptsState())
    _opened(_two_sets(tmp_path, easy_weight=7.0, limit=3, epochs=2), state)
    with pytest.raises(PromptFileError, match="'easy' has changed"):
        _opened(_two_sets(tmp_path, shuffle=False), state)
    with pytest.raises(PromptFileError, match="'easy' has changed"):
        _opened(replace(_two_sets(tmp_path), run=RunConfig(directory="run", seed=5)), state)


def test_a_changed_file_under_a_name_of_its_own_begins_at_its_start(tmp_path: Path) -> None:
    file = _file(tmp_path, 3, "old")
    first = _config(tmp_path, sets=(PromptSetConfig(name="old", file=file),))
    state = _opened(first, PromptsState())
    _draw(open_prompt_source(first), state, 2)
    changed = _config(
        tmp_path, sets=(PromptSetConfig(name="new", file=_file(tmp_path, 4, "old"), epochs=1),)
    )
    _opened(changed, state)
    assert len(_draw(open_prompt_source(changed), state, 10)) == 4
