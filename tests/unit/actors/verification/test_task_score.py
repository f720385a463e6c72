"""Scores of reasoning-gym's own scorers: as they are, stricter where they give marks away."""

from __future__ import annotations

import collections
import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from actors.verification import task_score
from actors.verification.judgement import Judgement
from actors.verification.task_guard import (
    ForbiddenCodeError,
    forbidden_names,
    no_code_from_answers,
)
from actors.verification.task_score import STRICTER, judge_task
from common.errors import DataError, InfraError
from common.reasoning_gym_catalog import dataset_names, is_installed, make_dataset
from common.types import VerdictStatus

pytestmark = pytest.mark.skipif(
    not is_installed(), reason="needs reasoning-gym (pip install 'headrace[tasks]')"
)


def _entry(name: str, seed: int = 1) -> dict[str, Any]:
    return make_dataset(name, {}, seed=seed)[0]


def _judge(name: str, answer: str, entry: dict[str, Any] | None = None) -> Judgement:
    fields = {"task": name, "entry": _entry(name) if entry is None else entry}
    return judge_task(f"<think></think><answer>{answer}</answer>", json.dumps(fields, default=str))


def _made_up(name: str, answer: str | None, **metadata: object) -> dict[str, Any]:
    return {"question": "?", "answer": answer, "metadata": {"source_dataset": name, **metadata}}


def test_the_value_is_the_datasets_own_score() -> None:
    entry = _entry("leg_counting")
    assert _judge("leg_counting", entry["answer"]) == Judgement.graded(1.0)
    own = make_dataset("chain_sum", {}, seed=0)
    entry = _made_up("chain_sum", "4")
    for answer in ("4", "4.0", "5"):
        assert _judge("chain_sum", answer, entry).value == own.score_answer(answer, entry)
    half = _made_up("spell_backward", "tnatsissa", word="assistant", word_len=9)
    assert _judge("spell_backward", "tnat", half).value == 0.0
    asked = json.dumps({"entry": half, "partial": True})
    assert judge_task("<answer>tnat</answer>", asked).value == pytest.approx(4 / 9)


def test_the_name_may_stand_in_the_entry_alone() -> None:
    entry = _entry("leg_counting")
    fields = json.dumps({"entry": entry})
    assert judge_task(f"<answer>{entry['answer']}</answer>", fields).value == 1.0


def test_options_reach_the_scorer() -> None:
    entry = _made_up("decimal_arithmetic", "1.00")
    strict = {"entry": entry, "options": {"min_num_decimal_places": 6, "max_num_decimal_places": 6}}
    assert judge_task("<answer>1.001</answer>", json.dumps({"entry": entry})).value == 1.0
    assert judge_task("<answer>1.001</answer>", json.dumps(strict)).value == 0.0


def test_no_final_answer_is_a_wrong_format() -> None:
    fields = json.dumps({"entry": _entry("leg_counting")})
    for completion in ("292", "<think><answer>292</answer></think>", "<answer> </answer>"):
        assert judge_task(completion, fields).status is VerdictStatus.WRONG_FORMAT


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "missing required field `entry`"),
        ({"entry": {}}, "must have a field answer"),
        ({"entry": {"answer": 3}}, "entry.answer must be text or null"),
        ({"entry": {"answer": "3"}}, "must name the dataset"),
        ({"entry": {"answer": "3", "metadata": 3}}, "entry.metadata must be an object"),
        ({"entry": _made_up("chain_sum", "3"), "task": "gcd"}, "must be the dataset of entry"),
        ({"entry": _made_up("leg_countin", "3")}, "did you mean 'leg_counting'"),
        ({"entry": _made_up("composite", "3")}, "composite"),
        ({"entry": _made_up("gcd", "3"), "options": {"x": 1}}, "options.x is not an option"),
    ],
)
def test_a_malformed_task_is_not_judged(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"malformed task.*{message}"):
        judge_task("<answer>3</answer>", json.dumps(fields))


def test_an_answer_that_the_scorer_cannot_read_is_wrong() -> None:
    entry = _entry("prime_factorization")
    judgement = _judge("prime_factorization", "garbage", entry)
    assert judgement == Judgement.graded(
        0.0, "prime_factorization cannot read the answer: ValueError"
    )
    assert _judge("prime_factorization", entry["answer"], entry).value == 1.0


def test_an_entry_that_the_scorer_cannot_read_is_not_judged() -> None:
    broken = _made_up("prime_factorization", "not even prime")
    with pytest.raises(DataError, match="prime_factorization cannot score this entry"):
        _judge("prime_factorization", "2", broken)


class _Scorer:
    """A dataset whose scorer misbehaves."""

    def __init__(self, score: Callable[[], object]) -> None:
        self._score = score

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> object:
        return self._score()


@pytest.mark.parametrize("score", [1.5, -0.1, math.nan, math.inf, None, "high", [1.0]])
def test_a_score_that_is_none_is_a_failure_of_the_machinery(
    score: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_score, "_dataset", lambda name, options: _Scorer(lambda: score))
    with pytest.raises(InfraError, match="not a number in 0..1"):
        _judge("chain_sum", "4")


def test_a_score_that_is_rounded_beyond_1_is_1() -> None:
    entry = _made_up("spell_backward", "tnatsissa", word="assistant", word_len=9)
    assert make_dataset("spell_backward", {}, seed=0).score_answer("tnatsissa.", entry) > 1.0
    assert _judge("spell_backward", "tnatsissa.", entry) == Judgement.graded(1.0)


def test_memory_is_not_mistaken_for_an_unreadable_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted() -> float:
        raise MemoryError

    monkeypatch.setattr(task_score, "_dataset", lambda name, options: _Scorer(exhausted))
    with pytest.raises(MemoryError):
        _judge("chain_sum", "4")


def test_a_scorer_that_draws_gives_the_same_score_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(task_score, "_dataset", lambda name, options: _Scorer(random.random))
    assert _judge("chain_sum", "4") == _judge("chain_sum", "4")


# Each of these scores 1 with the dataset's own rule.
_FREE_MARKS = [
    ("game_of_life_halting", "anything", _made_up("game_of_life_halting", "False")),
    ("puzzle24", "1*2*3*4", _made_up("puzzle24", "6*4*1*1", numbers=[6, 4, 1, 1])),
    ("coin_flip", "0", _made_up("coin_flip", "0.8125")),
    ("coin_flip", "0.8", _made_up("coin_flip", "0.8125")),
    ("coin_flip", "0", _made_up("coin_flip", "3.051757812e-05")),
    ("codeio", "{}", _made_up("codeio", "[]")),
    ("gsm_symbolic", "-20", _made_up("gsm_symbolic", "20")),
    ("complex_arithmetic", "nan", _made_up("complex_arithmetic", "1+2i", result=[1, 2])),
    ("countdown", "4**2", _made_up("countdown", "?", numbers=[4, 2], target=16)),
    ("countdown", "4.2*10", _made_up("countdown", "?", numbers=[2, 4, 10], target=42)),
]


@pytest.mark.parametrize(("name", "answer", "entry"), _FREE_MARKS)
def test_marks_that_a_scorer_gives_away_are_not_given(
    name: str, answer: str, entry: dict[str, Any]
) -> None:
    assert make_dataset(name, {}, seed=0).score_answer(answer, entry) == 1.0
    assert _judge(name, answer, entry).value == 0.0


@pytest.mark.parametrize("name", sorted(STRICTER))
def test_what_is_right_passes_the_stricter_rule(name: str) -> None:
    for seed in range(8):
        entry = _entry(name, seed)
        assert _judge(name, entry["answer"], entry).value == 1.0
    assert _judge("coin_flip", "13/16", _made_up("coin_flip", "0.8125")).value == 1.0
    assert _judge("game_of_life_halting", " true ", _made_up("game_of_life_halting", "True")).value


def _integral() -> dict[str, Any]:
    return _made_up("simple_integration", "x**3 + C", variable="x", integrand="3*x**2")


@pytest.mark.parametrize(
    ("name", "answer", "entry"),
    [
        ("simple_integration", "Integral(3*x**2, x)", _integral()),
        ("simple_integration", "integrate(3*x**2)", _integral()),
        ("simple_integration", "sympify('Integral(3*x**2, x)')", _integral()),
        ("simple_integration", "S('Integral(3*x**2, x)')", _integral()),
        (
            "polynomial_multiplication",
            "expand((x + 1)*(x + 2))",
            _made_up("polynomial_multiplication", "x**2 + 3*x + 2"),
        ),
    ],
)
def test_an_answer_may_not_ask_sympy_to_solve_the_problem(
    name: str, answer: str, entry: dict[str, Any]
) -> None:
    assert make_dataset(name, {}, seed=0).score_answer(answer, entry) == 1.0
    value = _judge(name, answer, entry).value
    assert value is not None
    assert value < 1.0
    assert _judge("simple_integration", "x**3 + C", _integral()).value == 1.0
    assert _judge("simple_integration", "x**3 + sin(x)**2 + cos(x)**2", _integral()).value == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('pathlib').Path({path!r}).touch()",
        "[p for p in ().__class__.__base__.__subclasses__()] and open({path!r}, 'w')",
        "exec('open({path!r}, chr(119))')",
        "(lambda: open({path!r}, 'w'))()",
        "eval(\"open({path!r}, 'w')\")",
    ],
)
@pytest.mark.parametrize(
    "name", ["string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "countdown"]
)
def test_an_answer_does_not_run_as_code(name: str, answer: str, tmp_path: Any) -> None:
    path = str(tmp_path / "touched")
    entry = _entry(name)
    judgement = _judge(name, answer.format(path=path), entry)
    assert judgement.value is not None
    assert judgement.value < 0.2
    assert not (tmp_path / "touched").exists()
    assert _judge(name, entry["answer"], entry).value == 1.0


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1 + 2*(3 - 4)", []),
        ("[[1, 2], ['a', None]]", []),
        ("Integer(2)*Symbol('x')*sin(x)", []),
        ("().__class__", ["__class__"]),
        ("[y.real for y in [1]]", ["real"]),
        ("(lambda: __import__('os'))", ["__import__"]),
        ("f'{open}'", ["open"]),
        ("(abcd := 3)", ["abcd"]),
    ],
)
def test_names_beyond_arithmetic_are_found_in_any_depth(text: str, names: list[str]) -> None:
    assert forbidden_names(compile(text, "<string>", "eval")) == names


def test_the_guard_ends_with_its_block() -> None:
    def make_a_class_from_a_text() -> object:
        return collections.namedtuple("Point", "some where")  # its way of working

    with no_code_from_answers(), pytest.raises(ForbiddenCodeError, match="'_tuple_new'"):
        make_a_class_from_a_text()
    assert make_a_class_from_a_text() is not None


def test_every_dataset_is_named_once() -> None:
    names = dataset_names()
    assert len(names) == len(set(names)) >= 100
    assert "composite" not in names
