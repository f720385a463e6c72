"""Where answers stand: the task says, else the run, else the default; verdict and vote agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from actors.collection.samples import samples_of
from actors.verification.json_lines import LineJob, parse_line
from actors.verification.judgement import run_checks
from actors.verification.registry import VERIFIERS
from common.answer_conventions import CONVENTIONS, MARKED, Convention
from common.answers import extract_answer
from common.completions import Completion
from common.config import RewardWeight
from common.config_loader import load_config
from common.errors import ConfigError
from common.references.math import conventions_of, with_conventions
from common.types import Prompt, Verdict, VerdictStatus, VerifiedGroup, VerifiedRollout
from tests.builders import rollout_header

_ALL_FOUR = "The final answer is 3. So <answer>1</answer> or \\boxed{2}, in 4 days"
_ANSWERS: dict[Convention, str] = {
    "answer-tag": "1",
    "boxed": "2",
    "final-answer": "3",
    "last-number": "4",
}
_TERMS = (RewardWeight(name="accuracy", kind="math"),)


def _math(**fields: object) -> Prompt:
    return Prompt(prompt_id="p", text="?", task="math", reference_json=json.dumps(fields))


def _reward(conventions: tuple[Convention, ...], **fields: object) -> float | None:
    line = json.dumps({"id": 1, "completion": _ALL_FOUR, **fields}).encode()
    parsed = parse_line(line, "math", _TERMS, conventions)
    assert isinstance(parsed, LineJob)
    return run_checks(parsed.job, VERIFIERS).judgements[0].value


@pytest.mark.parametrize("convention", get_args(Convention))
def test_each_convention_reads_its_own_answer(convention: Convention) -> None:
    for other, gold in _ANSWERS.items():
        assert _reward((convention,), gold=gold) == float(other == convention)


def test_the_order_of_the_run_decides_and_the_task_overrides_it() -> None:
    assert _reward(("last-number", "boxed"), gold="4") == 1.0
    assert _reward(("boxed", "last-number"), gold="4") == 0.0
    assert _reward(("last-number",), gold="2", extract=["boxed"]) == 1.0
    assert _reward((), gold="1") == 1.0


@pytest.mark.parametrize("extract", [("boxed",), ("last-number", "boxed"), ("final-answer",), ()])
def test_an_answer_votes_as_the_verifier_read_it(extract: tuple[Convention, ...]) -> None:
    group = VerifiedGroup(
        group_id=0,
        prompt=_math(gold="2"),
        deadline_step=0,
        rollouts=(
            VerifiedRollout(
                rollout=rollout_header(group_id=0, index=0),
                verdict=Verdict(status=VerdictStatus.GRADED, reward=0.0),
            ),
        ),
    )
    (sample,) = samples_of(group, [Completion(_ALL_FOUR)], extract)
    assert sample.answer == _ANSWERS[(extract or CONVENTIONS)[0]]
    assert _reward(extract, gold=sample.answer) == 1.0
    (thinking,) = samples_of(group, [Completion(_ALL_FOUR, inside_thought=True)], extract)
    assert (thinking.answer, thinking.completion) == (None, _ALL_FOUR)


def test_other_kinds_of_task_keep_their_own() -> None:
    countdown = Prompt(prompt_id="p", text="?", task="countdown", reference_json='{"target":1}')
    assert with_conventions(countdown, ("last-number",)) == countdown
    assert conventions_of(countdown) == MARKED


@pytest.mark.parametrize("reference_json", ["", "[1]", "{", '{"extract":["boxes"]}'])
def test_a_malformed_task_is_left_to_whoever_judges_it(reference_json: str) -> None:
    broken = Prompt(prompt_id="p", text="?", task="math", reference_json=reference_json)
    changed = with_conventions(broken, ("boxed",))
    assert changed == broken or json.loads(changed.reference_json)["extract"] == ["boxes"]
    assert extract_answer(_ALL_FOUR, conventions_of(changed)) == "1"


_RUN = """
run = {{ directory = "run" }}
model = {{ path = "model" }}
prompts = {{ generator = "countdown" }}
verifier = {{ extract = {} }}
"""


def test_a_run_names_its_conventions_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(_RUN.format('["last-number", "boxed"]'), encoding="utf-8")
    assert load_config(path).verifier.extract == ("last-number", "boxed")


def test_an_unknown_convention_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(_RUN.format('["box"]'), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"verifier\.extract.*'box'"):
        load_config(path)
