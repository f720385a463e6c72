"""Rules of the rewards in [verifier]: each says rule, value and cure; presets are written out."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import RewardWeight, VerifierConfig
from common.config_loader import load_config, to_toml
from common.errors import ConfigError
from common.reward_terms import PRESETS, resolved

_BASE = """
[run]
directory = "run"
[model]
path = "model"
"""
_ONE_SET = _BASE + '[prompts]\ngenerator = "chain-addition"\n'
_TWO_SETS = (
    _BASE
    + """
[[prompts.sets]]
name = "sums"
generator = "chain-addition"
[[prompts.sets]]
name = "chat"
generator = "chain-addition"
"""
)


def _load(folder: Path, text: str, base: str = _ONE_SET) -> VerifierConfig:
    path = folder / "run.toml"
    path.write_text(base + text)
    return load_config(path).verifier


def _error(folder: Path, text: str, base: str = _ONE_SET) -> str:
    with pytest.raises(ConfigError) as caught:
        _load(folder, text, base)
    return str(caught.value).removeprefix(f"{folder}/run.toml: ")


def test_the_default_is_r1_zeros_reward(tmp_path: Path) -> None:
    assert _load(tmp_path, "").rewards == PRESETS["r1-zero"]


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_is_written_out_with_its_language(tmp_path: Path, preset: str) -> None:
    rewards = _load(tmp_path, f'[verifier]\npreset = "{preset}"\nlanguage = "ko"\n').rewards
    assert [(term.name, term.weight, term.data) for term in rewards] == [
        (term.name, term.weight, term.data) for term in PRESETS[preset]
    ]
    targets = [term.options for term in rewards if term.name == "language"]
    assert targets == ([] if preset == "r1-zero" else [{"target": "ko"}])


def test_a_resolved_preset_reads_back_as_itself(tmp_path: Path) -> None:
    path, again = tmp_path / "run.toml", tmp_path / "again.toml"
    path.write_text(_ONE_SET + '[verifier]\npreset = "r1-stage-2"\nlanguage = "zh"\n')
    again.write_text(to_toml(load_config(path)))
    assert load_config(again).verifier == load_config(path).verifier


def test_a_preset_beside_other_terms_is_refused() -> None:
    both = VerifierConfig(preset="r1-stage-1", rewards=(RewardWeight(name="accuracy"),))
    with pytest.raises(ConfigError, match=r"cannot both be given \(remove one of them\)"):
        resolved(both)


def test_a_language_of_its_own_wins_over_the_sections(tmp_path: Path) -> None:
    text = '[[verifier.rewards]]\nname = "language"\noptions = {target = "ja"}\n'
    assert _load(tmp_path, text).rewards[0].options == {"target": "ja"}


def _term(**keys: str) -> str:
    lines = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return f"[[verifier.rewards]]\n{lines}"


_ACCURACY = _term(name='"accuracy"')


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            _ACCURACY * 2,
            "verifier.rewards must name each reward once, got ['accuracy', ",
        ),
        (
            _term(name='"acuracy"'),
            "verifier.rewards: no term is called 'acuracy' (did you mean accuracy?; or set",
        ),
        (
            _ACCURACY + _term(name='"format"', options='{template = "r2"}'),
            "verifier.rewards: format: Invalid enum value 'r2' - at `$.template` "
            "(its options: template, token)",
        ),
        (
            _ACCURACY + _term(name='"overlong"', options="{max_tokens = 9}"),
            "verifier.rewards: overlong: Object missing required field `cache_tokens`",
        ),
        (
            _ACCURACY + _term(name='"overlong"', options="{max_tokens = 9, cache_tokens = 10}"),
            "verifier.rewards: overlong: cache_tokens must be at most max_tokens (9), got 10",
        ),
        (
            _ACCURACY + _term(name='"language"', options='{target = "klingon"}'),
            "verifier.rewards: language: must be a BCP 47 tag such as en, zh or pt-BR, got 'kli",
        ),
        (
            _ACCURACY + _term(name='"accuracy2"', kind='"countdown"', weight="inf"),
            "verifier.rewards: accuracy2: weight must be finite, got inf (use 1.0)",
        ),
        (
            _ACCURACY + _term(name='"strict"', kind='"cuontdown"'),
            "verifier.rewards: strict: no kind of check is 'cuontdown' (did you mean countdown?)",
        ),
        (
            _term(name='"cosine"', options="{max_tokens = 9}"),
            'verifier.rewards: "cosine" depends on whether the answer is right',
        ),
        (
            _ACCURACY + _term(name='"helpful"'),
            "verifier.rewards: helpful is judged by a model, got none of kind 'helpful' "
            "(add it to [[verifier.models]])",
        ),
        (
            _ACCURACY + _term(name='"format"', prompt_sets='["sum"]'),
            "verifier.rewards: format: prompt_sets must name sets of the run, got 'sum'",
        ),
        (
            _ACCURACY + '[verifier.monitor]\ntruth = "strict"\n',
            "verifier.monitor.truth must name a term of verifier.rewards, got 'strict'",
        ),
        (
            _ACCURACY + "[verifier.monitor]\nwindow = 1\n",
            "verifier.monitor.window must be >= 2, got 1 (use 512)",
        ),
    ],
)
def test_a_bad_reward_is_one_clear_error(tmp_path: Path, text: str, told: str) -> None:
    assert _error(tmp_path, text).startswith(told)


def test_every_prompt_set_needs_a_term(tmp_path: Path) -> None:
    text = _term(name='"accuracy"', prompt_sets='["sums"]')
    assert _error(tmp_path, text, _TWO_SETS) == (
        "verifier.rewards: no term applies to prompt set 'chat' "
        "(add one, or name the set in prompt_sets)"
    )
