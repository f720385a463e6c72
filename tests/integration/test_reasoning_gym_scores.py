"""Every dataset of reasoning-gym, scored by its own rule in a real killable child."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest

from actors.verification.judgement import Check, JobReply, Judgement, VerifyJob
from actors.verification.pool import VerifierPool
from actors.verification.task_pool import task_pool
from common.config import VerifierConfig
from common.reasoning_gym_catalog import dataset_names, is_installed, make_dataset
from common.types import VerdictStatus

pytestmark = pytest.mark.skipif(
    not is_installed(), reason="needs reasoning-gym (pip install 'headrace[tasks]')"
)

NO_SINGLE_ANSWER = {
    "boxnet": "the plan that it was made from is not kept",
    "graph_color": "any proper colouring is right",
    "propositional_logic": "any conclusion that follows and is not trivial is right",
    "rubiks_cube": "any sequence of moves that solves the cube is right",
    "rush_hour": "any sequence of moves that frees the car is right",
}
"""Datasets whose entries have no answer of their own (null), and why."""

NUM_ENTRIES = 3
_GARBAGE = "zzz 1234567"

Scored = tuple[str, int, Judgement, Judgement]


def _job(entry: dict[str, Any], answer: str) -> VerifyJob:
    """The check as it travels: the entry has been through JSON."""
    reference_json = json.dumps({"entry": entry}, default=str)
    check = Check(kind="task", reference_json=reference_json)
    return VerifyJob(completion=f"<think></think><answer>{answer}</answer>", checks=(check,))


def _judgement(reply: JobReply) -> Judgement:
    assert reply.failure is None, reply.reason
    (judgement,) = reply.judgements
    return judgement


async def _score(pool: VerifierPool, names: Iterable[str]) -> list[Scored]:
    scored = []
    for name in names:
        for seed in range(1, 1 + NUM_ENTRIES):
            entry = make_dataset(name, {}, seed=seed)[0]
            gold = "" if entry["answer"] is None else entry["answer"]
            right = _judgement(await pool.judge(_job(entry, gold)))
            wrong = _judgement(await pool.judge(_job(entry, _GARBAGE)))
            scored.append((name, seed, right, wrong))
    return scored


def _score_all(names: Iterable[str]) -> list[Scored]:
    async def run() -> list[Scored]:
        async with task_pool(VerifierConfig()) as pool:
            return await _score(pool, names)

    return asyncio.run(run())


@pytest.mark.slow
def test_every_dataset_gives_its_own_answer_1_and_garbage_less() -> None:
    for name, seed, right, wrong in _score_all(dataset_names()):
        if name in NO_SINGLE_ANSWER:
            assert right.status is VerdictStatus.WRONG_FORMAT, (name, seed)
        else:
            assert right == Judgement.graded(1.0), (name, seed)
        assert wrong.value is not None, (name, seed)
        assert wrong.value < 1.0, (name, seed, wrong)


def test_the_datasets_without_an_answer_are_those_that_are_listed() -> None:
    names = dataset_names()
    assert set(NO_SINGLE_ANSWER) <= set(names)
    for name in NO_SINGLE_ANSWER:
        assert make_dataset(name, {}, seed=1)[0]["answer"] is None


def _colouring(puzzle: dict[str, Any]) -> dict[str, int]:
    """A proper colouring, found by trying."""
    vertices, options = puzzle["vertices"], puzzle["color_options"]
    edges = [tuple(edge) for edge in puzzle["edges"]]

    def extend(chosen: dict[int, int]) -> dict[int, int] | None:
        if len(chosen) == len(vertices):
            return chosen
        vertex = vertices[len(chosen)]
        for color in options:
            tried = {**chosen, vertex: color}
            if all(tried.get(a) != tried.get(b) for a, b in edges if a in tried and b in tried):
                found = extend(tried)
                if found is not None:
                    return found
        return None

    found = extend({})
    assert found is not None
    return {str(vertex): color for vertex, color in found.items()}


def _undone(scramble: str) -> str:
    """The moves that take a scramble back."""
    moves = reversed(scramble.split())
    return " ".join(
        move[:-1] if move.endswith("'") else move if move.endswith("2") else f"{move}'"
        for move in moves
    )


@pytest.mark.slow
def test_a_right_answer_of_ones_own_scores_1_where_there_is_no_single_one() -> None:
    async def run() -> list[Judgement]:
        async with task_pool(VerifierConfig()) as pool:
            graph = make_dataset("graph_color", {}, seed=1)[0]
            cube = make_dataset("rubiks_cube", {}, seed=1)[0]
            colours = json.dumps(_colouring(graph["metadata"]["puzzle"]))
            moves = _undone(cube["metadata"]["scramble_moves"])
            jobs = [_job(graph, colours), _job(cube, moves)]
            return [_judgement(await pool.judge(job)) for job in jobs]

    assert asyncio.run(run()) == [Judgement.graded(1.0)] * 2


@pytest.mark.slow
def test_importing_the_package_does_not_count_against_an_answer() -> None:
    async def run() -> Judgement:
        async with task_pool(VerifierConfig(wall_limit_s=0.5)) as pool:
            return _judgement(await pool.judge(_job(_sum(), "4")))

    assert asyncio.run(run()) == Judgement.graded(1.0)


@pytest.mark.slow
def test_an_answer_that_never_ends_costs_only_itself() -> None:
    async def run() -> tuple[JobReply, JobReply]:
        async with task_pool(VerifierConfig(wall_limit_s=1.0)) as pool:
            entry = make_dataset("countdown", {}, seed=1)[0]
            hung = await pool.judge(_job(entry, "9**9**9**9"))
            return hung, await pool.judge(_job(_sum(), "4"))

    hung, after = asyncio.run(run())
    assert hung.failure is VerdictStatus.LIMIT_EXCEEDED
    assert _judgement(after) == Judgement.graded(1.0)


def _sum() -> dict[str, Any]:
    return {"question": "1+3", "answer": "4", "metadata": {"source_dataset": "chain_sum"}}
