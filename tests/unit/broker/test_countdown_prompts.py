"""Generated countdown: solvable, repeatable, with the verifier's own rule in the prompt."""

from __future__ import annotations

import json

import pytest

from actors.verification.countdown import judge_countdown
from broker.tasks import GENERATORS, HELD_OUT, countdown
from broker.tasks.finding import find_problems
from broker.tasks.problem import is_held_out_text
from common.errors import ConfigError
from common.task_reference import check_task


def test_every_problem_is_solved_by_its_own_answer() -> None:
    for index in range(300):
        problem = countdown.prompt_at(0, index, num_numbers=2 + index % 7, largest_target=1000)
        check_task("countdown", problem.fields_json)
        completion = f"<think></think><answer>{problem.answer}</answer>"
        assert judge_countdown(completion, problem.fields_json).value == 1.0, problem


def test_the_prompt_states_the_numbers_the_target_and_the_rule() -> None:
    problem = countdown.prompt_at(1, 0)
    fields = json.loads(problem.fields_json)
    assert f"the numbers {', '.join(map(str, fields['numbers']))}," in problem.text
    assert f"equals {fields['target']}." in problem.text
    for rule in ("every number exactly once", "+, -, *, /", "fractions", "no other operators"):
        assert rule in problem.text
    assert problem.prompt.task == "countdown"


def test_a_problem_is_a_function_of_seed_and_index() -> None:
    stream = [countdown.prompt_at(3, index) for index in range(20)]
    assert [countdown.prompt_at(3, index) for index in reversed(range(20))] == stream[::-1]
    assert [countdown.prompt_at(4, index) for index in range(20)] != stream
    # Another Python must draw the same: a golden value.
    assert stream[0].problem_id == "countdown/20-1-9-6=17"


def test_no_stream_has_a_held_out_problem() -> None:
    held_out = countdown.held_out(0, 20)
    assert len({problem.problem_id for problem in held_out}) == 20
    assert countdown.held_out(0, 5) == held_out[:5]
    assert all(is_held_out_text(problem.text) for problem in held_out)
    streamed = {countdown.prompt_at(seed, i).text for seed in range(3) for i in range(100)}
    assert not any(map(is_held_out_text, streamed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_numbers": 1}, "num_numbers must be within 2..8, got 1"),
        ({"largest": 3}, "largest must be within 4"),
        ({"largest_target": 0}, "largest_target must be within 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_problems("countdown", options).prompt_at(0, 0)


@pytest.mark.parametrize("name", ["chain-addition", "countdown"])
def test_an_option_of_another_type_is_refused(name: str) -> None:
    option = {"chain-addition": "num_terms", "countdown": "largest"}[name]
    with pytest.raises(ConfigError, match=f"prompts.options.{option} must be int, got '4'"):
        find_problems(name, {option: "4"})
    assert find_problems(name, {option: 5}).prompt_at(0, 0).text


def test_the_registry_has_both_splits() -> None:
    assert GENERATORS["countdown"](0, 1) == countdown.prompt_at(0, 1)
    assert HELD_OUT["countdown"](0, 1) == countdown.held_out(0, 1)
