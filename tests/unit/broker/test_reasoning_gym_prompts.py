"""Problems of reasoning-gym as a prompt source: by name, repeatable, resumable, refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker import events
from broker.prompts.mixture import Draw, PromptSource
from broker.prompts.opening import open_prompt_source
from broker.prompts.state import PromptsState
from broker.tasks.cli import task
from broker.tasks.problem import is_held_out_text
from broker.tasks.reasoning_gym import NOT_REPEATABLE, DatasetProblems
from common import reasoning_gym_catalog
from common.config import Config, ModelConfig, PromptsConfig, PromptSetConfig, RunConfig
from common.errors import ConfigError
from common.prompt_file import PromptFile
from common.task_reference import check_task

pytestmark = pytest.mark.skipif(
    not reasoning_gym_catalog.is_installed(),
    reason="needs reasoning-gym (pip install 'headrace[tasks]')",
)


def _source(*sets: PromptSetConfig, seed: int = 0) -> PromptSource:
    return open_prompt_source(
        Config(
            run=RunConfig(directory="run", seed=seed),
            model=ModelConfig(path="model"),
            prompts=PromptsConfig(sets=sets),
        )
    )


def _set(name: str, **options: object) -> PromptSetConfig:
    return PromptSetConfig(
        name=name,
        generator=f"reasoning-gym:{name}",
        options=options,  # type: ignore[arg-type] # options of the test
    )


def _draw(source: PromptSource, state: PromptsState, number: int) -> list[Draw]:
    """Draws that are admitted in ``state``."""
    drawn: list[Draw] = []
    while len(drawn) < number and (draw := source.draw(state)) is not None:
        if draw.mix != state.mix:
            state.on_mix_began(events.MixBegan(mix=draw.mix))
        state.on_admitted(
            events.Admitted(
                group_id=0, prompt=draw.prompt, size=1, cursor=draw.cursor, position=draw.position
            )
        )
        drawn.append(draw)
    return drawn


def test_a_set_names_a_dataset_and_its_options() -> None:
    source = _source(_set("chain_sum", min_terms=5, max_terms=5), _set("leg-counting"))
    draws = _draw(source, PromptsState(), 20)
    sums = [draw.prompt for draw in draws if draw.prompt.prompt_set == "chain_sum"]
    assert len(sums) == 10
    for prompt in sums:
        assert prompt.text.count(" + ") + prompt.text.count(" - ") == 4
        assert json.loads(prompt.reference_json)["options"] == {"min_terms": 5, "max_terms": 5}
    for prompt in (draw.prompt for draw in draws):
        assert prompt.task == "task"
        check_task(prompt.task, prompt.reference_json)
    assert len({draw.prompt.prompt_id for draw in draws}) == 20


def test_a_source_goes_on_at_its_exact_next_prompt_in_another_process() -> None:
    sets = (_set("chain_sum"), _set("leg_counting"))
    whole, state = _draw(_source(*sets), PromptsState(), 30), PromptsState()
    assert _draw(_source(*sets), state, 13) + _draw(_source(*sets), state, 17) == whole
    assert _draw(_source(*sets, seed=1), PromptsState(), 30) != whole


_FINGERPRINT = """
import hashlib, sys
from broker.tasks.reasoning_gym import DatasetProblems
for name in sys.argv[1:]:
    for index in (2, 0, 5):
        problem = DatasetProblems(name, {}).prompt_at(3, index)
        print(name, hashlib.sha256(repr(problem).encode()).hexdigest())
"""


def _fingerprints(names: list[str], hash_seed: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FINGERPRINT, *names],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.splitlines()


@pytest.mark.slow
def test_a_problem_depends_on_seed_and_index_alone_whatever_the_hash_seed() -> None:
    names = [
        name
        for name in reasoning_gym_catalog.dataset_names()
        if name not in NOT_REPEATABLE and sum(map(ord, name)) % 4 == 0
    ]
    assert len(names) >= 15
    one = _fingerprints(names, "1")
    assert len(set(one)) == len(one) == 3 * len(names)
    assert _fingerprints(names, "2") == one


@pytest.mark.slow
def test_the_hash_seed_is_why_five_datasets_are_refused() -> None:
    names = ["isomorphic_strings", "ransom_note"]
    assert _fingerprints(names, "1") != _fingerprints(names, "2")
    for name in NOT_REPEATABLE:
        with pytest.raises(ConfigError, match="other problems in every process"):
            DatasetProblems.open(name, {})
    assert DatasetProblems.open("ransom_note", {}, repeatable=False).name == "ransom_note"


def test_making_a_problem_leaves_the_shared_generator_alone() -> None:
    import random

    random.seed(5)
    expected = random.random()
    random.seed(5)
    DatasetProblems("list_functions", {}).prompt_at(0, 0)
    assert random.random() == expected


def test_a_question_of_the_held_out_split_is_in_no_stream() -> None:
    problems = DatasetProblems("chain_sum", {})
    held_out = problems.held_out(0, 6)
    assert len({problem.text for problem in held_out}) == 6
    assert problems.held_out(0, 3) == held_out[:3]
    assert all(is_held_out_text(problem.text) for problem in held_out)
    streamed = [problems.prompt_at(seed, index) for seed in (0, 1) for index in range(40)]
    assert not any(is_held_out_text(problem.text) for problem in streamed)


@pytest.mark.parametrize(
    ("generator", "options", "message"),
    [
        ("reasoning-gym:leg_countin", {}, "no dataset 'leg_countin'.*did you mean 'leg_counting'"),
        ("reasoning-gym:zzzz", {}, "no dataset 'zzzz'.*known: .*chain_sum"),
        ("reasoning-gym:composite", {}, "composite.*give each dataset a set"),
        ("reasoning-gym", {}, "not registered"),
        ("reasoning-gym:chain_sum", {"min_term": 3}, "min_term is not an.*'min_terms'"),
        ("reasoning-gym:chain_sum", {"min_terms": "3"}, "options.min_terms '3': expected `int`"),
        ("reasoning-gym:chain_sum", {"seed": 3}, "options.seed is not.*run.seed"),
        ("reasoning-gym:chain_sum", {"size": 3}, "options.size is not.*limit"),
        ("reasoning-gym:chain_sum", {"min_terms": 9, "max_terms": 3}, "refuses min_terms = 9"),
    ],
)
def test_an_unknown_name_or_option_is_refused_with_its_cure(
    generator: str, options: dict[str, int | float | str | bool], message: str
) -> None:
    item = PromptSetConfig(name="x", generator=generator, options=dict(options))
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        _source(item)


def test_any_dataset_can_be_written_to_a_file_of_prompts(tmp_path: Path) -> None:
    out = tmp_path / "prompts.jsonl"
    arguments = ["reasoning-gym:isomorphic-strings", "--count", "5", "--out", str(out)]
    result = CliRunner().invoke(task, [*arguments, "--option", "min_string_length=4"])
    assert result.output == f"5 prompts of isomorphic_strings in {out}\n"
    prompts = PromptFile(out)
    assert len(prompts) == 5
    fields = json.loads(prompts[0].reference_json)
    assert prompts[0].task == "task"
    assert fields["options"] == {"min_string_length": 4}
    assert fields["entry"]["question"] == prompts[0].text
    for option in ("min_string_length", "min_string_length=four"):
        assert CliRunner().invoke(task, [*arguments, "--option", option]).exit_code == 2


def test_without_the_package_the_error_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasoning_gym_catalog, "is_installed", lambda: False)
    reasoning_gym_catalog._registered.cache_clear()
    with pytest.raises(ConfigError, match="pip install 'headrace\\[tasks\\]'"):
        _source(_set("chain_sum"))


def test_a_package_that_does_not_import_is_named_with_the_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    reasoning_gym_catalog._registered.cache_clear()
    with pytest.raises(ConfigError, match="cannot be imported: .*--force-reinstall"):
        _source(_set("chain_sum"))


def test_a_set_made_by_another_version_is_refused_on_resuming() -> None:
    source = _source(_set("chain_sum", max_terms=3))
    ((name, fingerprint),) = source.opened(PromptsState())  # type: ignore[attr-defined]
    assert name == "chain_sum"
    assert fingerprint == (
        f"reasoning-gym {reasoning_gym_catalog.version()}, chain_sum of seed 0, max_terms = 3"
    )
