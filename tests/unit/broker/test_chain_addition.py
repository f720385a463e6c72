"""Chain addition: a pure function of seed and index, with a split that no seed can cross."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable

import pytest

from broker.tasks import CORPORA, GENERATORS, HELD_OUT, Problem, chain_addition
from broker.tasks.problem import HELD_OUT_ONE_IN
from common.errors import ConfigError


def _terms_of(prompt_text: str) -> list[int]:
    return [int(term) for term in prompt_text.removesuffix("=").split("+")]


def _answer_of(completion: str) -> int:
    match = re.fullmatch(r"<think>.*</think><answer>(\d+)</answer>", completion)
    assert match is not None, completion
    return int(match[1])


def _is_long(completion: str) -> bool:
    return not completion.startswith("<think></think>")


def test_a_problem_is_its_terms_its_sum_and_a_readable_name() -> None:
    assert chain_addition.problem_of([7, 2, 9, 4, 1, 8]) == Problem(
        problem_id="chain_addition/7+2+9+4+1+8", text="7+2+9+4+1+8=", answer="31"
    )


def test_problems_use_every_digit_from_1_to_9_and_the_asked_number_of_terms() -> None:
    rng = random.Random(0)
    problems = [chain_addition.problem(rng, num_terms=4) for _ in range(200)]
    assert {len(_terms_of(item.text)) for item in problems} == {4}
    assert {term for item in problems for term in _terms_of(item.text)} == set(range(1, 10))
    assert all(int(item.answer) == sum(_terms_of(item.text)) for item in problems)


def test_the_stream_of_a_seed_is_the_same_on_every_machine() -> None:
    assert [chain_addition.prompt_at(0, index).text for index in (0, 1, 10**6)] == [
        "5+9+2+1+3+2=",
        "7+9+1+1+3+6=",
        "9+3+2+2+7+3=",
    ]


def test_a_prompt_depends_on_its_index_alone_and_not_on_what_was_asked_before() -> None:
    in_order = [chain_addition.prompt_at(3, index) for index in range(50)]
    backwards = [chain_addition.prompt_at(3, index) for index in reversed(range(50))]
    assert backwards[::-1] == in_order


def test_seeds_name_different_streams() -> None:
    first, second = (
        {chain_addition.prompt_at(seed, index).text for index in range(100)} for seed in (0, 1)
    )
    assert len(first & second) < 5


def test_no_seed_trains_on_a_held_out_problem() -> None:
    held_out = {item.text for item in chain_addition.held_out(0, 60, num_terms=3)}
    prompts = {
        chain_addition.prompt_at(seed, index, num_terms=3).text
        for seed in range(4)
        for index in range(1000)
    }
    corpus = {prompt for prompt, _ in chain_addition.corpus(0, 2000, num_terms=3)}
    assert len(prompts) > 600, "the streams must cover the 729 problems to mean anything"
    assert held_out.isdisjoint(prompts)
    assert held_out.isdisjoint(corpus)


def test_about_one_problem_in_eight_is_held_out() -> None:
    every = [
        chain_addition.problem_of(terms) for terms in itertools.product(range(1, 10), repeat=4)
    ]
    share = sum(map(chain_addition.is_held_out, every)) / len(every)
    assert share == pytest.approx(1 / HELD_OUT_ONE_IN, abs=0.01)


def test_held_out_problems_are_distinct_and_a_larger_set_extends_a_smaller_one() -> None:
    problems = chain_addition.held_out(5, 300)
    assert len({item.problem_id for item in problems}) == 300
    assert all(map(chain_addition.is_held_out, problems))
    assert chain_addition.held_out(5, 100) == problems[:100]
    assert chain_addition.held_out(6, 100) != problems[:100]


def test_asking_for_no_held_out_problems_gives_none() -> None:
    assert chain_addition.held_out(0, 0) == []


def test_asking_for_more_held_out_problems_than_exist_says_how_many_there_are() -> None:
    with pytest.raises(ConfigError, match=r"count = 500, found \d+ \(ask for fewer"):
        chain_addition.held_out(0, 500, num_terms=3)


def test_the_long_habit_writes_every_partial_sum() -> None:
    assert chain_addition.long_completion([7, 2, 9, 4]) == (
        "<think>7+2=9,9+9=18,18+4=22</think><answer>22</answer>"
    )


def test_the_short_habit_answers_without_a_thought() -> None:
    assert chain_addition.short_completion(31) == "<think></think><answer>31</answer>"


def test_long_traces_are_right_and_only_the_asked_share_of_short_ones_slips() -> None:
    pairs = chain_addition.corpus(1, 4000, 0.3, slip_share=0.2)
    long = [(sum(_terms_of(p)), _answer_of(c)) for p, c in pairs if _is_long(c)]
    short = [(sum(_terms_of(p)), _answer_of(c)) for p, c in pairs if not _is_long(c)]
    errors = [abs(answer - total) for total, answer in short if answer != total]
    assert len(long) / len(pairs) == pytest.approx(0.3, abs=0.03)
    assert all(total == answer for total, answer in long)
    assert len(errors) / len(short) == pytest.approx(0.2, abs=0.03)
    assert set(errors) == {1, 2, 3, 4}


@pytest.mark.parametrize(("share", "num_long"), [(0.0, 0), (1.0, 200)])
def test_a_long_share_of_none_or_all_is_exact(share: float, num_long: int) -> None:
    pairs = chain_addition.corpus(0, 200, share)
    assert sum(_is_long(completion) for _, completion in pairs) == num_long


def test_a_slip_of_the_smallest_sums_stays_a_positive_number() -> None:
    pairs = chain_addition.corpus(0, 1500, 0.0, slip_share=1.0, num_terms=3)
    answers = [_answer_of(completion) for prompt, completion in pairs if sum(_terms_of(prompt)) < 5]
    assert len(answers) >= 3
    assert min(answers) >= 1


def test_a_corpus_repeats_for_its_seed_and_a_longer_one_extends_it() -> None:
    assert chain_addition.corpus(2, 300)[:100] == chain_addition.corpus(2, 100)
    assert chain_addition.corpus(2, 100) != chain_addition.corpus(3, 100)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: chain_addition.prompt_at(0, -1), "prompt index must be >= 0, got -1"),
        (lambda: chain_addition.prompt_at(0, 0, num_terms=2), "within 3..32, got 2"),
        (lambda: chain_addition.corpus(0, 1, 1.5), "long_share must be within 0..1, got 1.5"),
        (lambda: chain_addition.corpus(0, 1, slip_share=-0.1), "slip_share must be within"),
    ],
)
def test_bad_numbers_are_refused_with_rule_value_and_cure(
    ask: Callable[[], object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ask()


def test_the_task_has_one_name_in_all_registers() -> None:
    name = "chain_addition"
    assert GENERATORS[name](0, 7) == chain_addition.prompt_at(0, 7)
    assert HELD_OUT[name](0, 3) == chain_addition.held_out(0, 3)
    assert CORPORA[name](0, 5, 0.5) == chain_addition.corpus(0, 5, 0.5)
