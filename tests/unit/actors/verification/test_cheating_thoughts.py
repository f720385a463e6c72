"""Answers inside of a thought that the prompt opened and nobody closed."""

from __future__ import annotations

import json

import pytest

from actors.verification.code.extraction import extract_program
from actors.verification.json_lines import LineJob, parse_line
from actors.verification.judgement import Check, VerifyJob, run_checks
from actors.verification.models.response import final_summary
from actors.verification.registry import VERIFIERS
from common.config import RewardWeight
from common.thoughts import InsideThought

_TASKS = {
    "arithmetic": ({"gold": "5"}, "5"),
    "choice": ({"gold": "B"}, "B"),
    "countdown": ({"numbers": [2, 3], "target": 5}, "2+3"),
    "math": ({"gold": "5"}, "5"),
}


def _value(kind: str, completion: str, fields: object, *, inside: bool) -> float | None:
    check = Check(kind=kind, reference_json=json.dumps(fields))
    job = VerifyJob(completion=completion, checks=(check,), inside_thought=inside)
    return run_checks(job.about_completion(job.checks), VERIFIERS).judgements[0].value


@pytest.mark.parametrize("kind", _TASKS)
@pytest.mark.parametrize("form", ["<answer>{}</answer>", "\\boxed{{{}}}"])
def test_an_answer_in_a_thought_that_was_never_closed_earns_nothing(kind: str, form: str) -> None:
    fields, answer = _TASKS[kind]
    answered = form.format(answer)
    assert _value(kind, answered, fields, inside=False) == 1.0
    assert _value(kind, answered, fields, inside=True) == 0.0
    assert _value(kind, f"{answered}</think>", fields, inside=True) == 0.0
    assert _value(kind, f"hm</think>{answered}", fields, inside=True) == 1.0


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("r</think><answer>42</answer>", 1.0),
        ("<think>r</think><answer>42</answer>", 0.0),  # a second one
        ("r<answer>42</answer>", 0.0),
    ],
)
def test_the_form_is_that_of_the_prompts_mark_and_the_completion(
    completion: str, value: float
) -> None:
    assert _value("format", completion, {"template": "r1-zero"}, inside=True) == value


def test_words_before_an_answer_in_an_open_thought_are_all_thought() -> None:
    completion = "one two three <answer>\u0447\u0435\u0442\u044b\u0440\u0435</answer>"
    assert _value("language", completion, {"target": "en"}, inside=False) == 1.0
    assert _value("language", completion, {"target": "en"}, inside=True) == 0.75


def test_a_program_or_a_summary_in_an_open_thought_is_none() -> None:
    job = VerifyJob(completion="```python\nprint(5)\n```", checks=(), inside_thought=True)
    assert extract_program(job.response, "python") is None
    assert final_summary(job.response) is None
    assert extract_program(job.completion, "python") == "print(5)\n"


@pytest.mark.parametrize(
    ("setting", "prompt", "inside"),
    [
        ("auto", "1+4=", False),
        ("auto", "1+4=<think>\n", True),
        ("always", "1+4=", True),
        ("never", "1+4=<think>\n", False),
    ],
)
def test_a_line_says_by_its_prompt_where_the_completion_begins(
    setting: InsideThought, prompt: str, inside: bool
) -> None:
    line = json.dumps({"id": 1, "completion": "", "gold": "5", "prompt": prompt}).encode()
    terms = (RewardWeight(name="accuracy", kind="arithmetic"),)
    parsed = parse_line(line, "arithmetic", terms, (), setting)
    assert isinstance(parsed, LineJob)
    assert parsed.job.inside_thought is inside
