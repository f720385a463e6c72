"""Chain addition: the embedded task, ``7+2+9+4+1+8=``, and its cold-start corpus.

The corpus mixes two habits. Most traces answer at once, and some of those slip; a minority writes
every partial sum and is always right. So reinforcement learning has something to discover: answers
get longer because longer answers are right.

Everything is a pure function of a seed and an index, so the broker's prompt cursor is one integer.
A hash of the problem alone decides whether it is held out: no seed can train on a held-out problem.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from broker.tasks.problem import Problem, is_held_out_text
from common.errors import ConfigError

TASK_NAME = "chain_addition"
DEFAULT_NUM_TERMS = 6
DEFAULT_LONG_SHARE = 0.3
DEFAULT_SLIP_SHARE = 0.25

_SMALLEST_TERM, _LARGEST_TERM = 1, 9
_LARGEST_SLIP = 4
_MIN_NUM_TERMS = 3
_MAX_NUM_TERMS = 32
_MAX_DRAWS_PER_HELD_OUT = 64


def problem_of(terms: Sequence[int]) -> Problem:
    """The problem that asks for the sum of ``terms``."""
    expression = "+".join(map(str, terms))
    return Problem(f"{TASK_NAME}/{expression}", f"{expression}=", str(sum(terms)))


def problem(rng: random.Random, *, num_terms: int = DEFAULT_NUM_TERMS) -> Problem:
    """A problem of ``num_terms`` digits from 1 to 9, from either split.

    Raises ``ConfigError`` where ``num_terms`` is outside 3..32.
    """
    return problem_of(_draw_terms(rng, num_terms))


def is_held_out(candidate: Problem) -> bool:
    """Whether the problem is for evaluation: one in ``HELD_OUT_ONE_IN``, by hash of its text."""
    return is_held_out_text(candidate.text)


def prompt_at(seed: int, index: int, *, num_terms: int = DEFAULT_NUM_TERMS) -> Problem:
    """Training problem number ``index`` (from 0) of the endless stream that ``seed`` names."""
    if index < 0:
        raise ConfigError(f"prompt index must be >= 0, got {index} (use 0 for the first prompt)")
    return problem_of(_training_terms(_rng("prompt", seed, index), num_terms))


def held_out(seed: int, count: int, *, num_terms: int = DEFAULT_NUM_TERMS) -> list[Problem]:
    """``count`` distinct held-out problems; a larger ``count`` extends a smaller one.

    Raises ``ConfigError`` where the task has too few held-out problems.
    """
    rng = _rng("held-out", seed, 0)
    found: dict[str, Problem] = {}
    for _ in range(count * _MAX_DRAWS_PER_HELD_OUT):
        candidate = problem(rng, num_terms=num_terms)
        if is_held_out(candidate):
            found[candidate.problem_id] = candidate
            if len(found) == count:
                break
    if len(found) < count:
        raise ConfigError(
            f"{TASK_NAME} with num_terms = {num_terms} has too few held-out problems for "
            f"count = {count}, found {len(found)} (ask for fewer or raise num_terms)"
        )
    return list(found.values())


def corpus(
    seed: int,
    count: int,
    long_share: float = DEFAULT_LONG_SHARE,
    *,
    slip_share: float = DEFAULT_SLIP_SHARE,
    num_terms: int = DEFAULT_NUM_TERMS,
) -> list[tuple[str, str]]:
    """Cold-start pairs (prompt text, completion text), all from the training split.

    A share of about ``long_share`` writes every partial sum and is right. The others answer at
    once, and a share of about ``slip_share`` of those is wrong by up to 4. Raises ``ConfigError``
    where a share is outside 0..1.
    """
    for name, share in (("long_share", long_share), ("slip_share", slip_share)):
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"{name} must be within 0..1, got {share} (use 0.3)")
    return [
        _trace(_rng("corpus", seed, index), long_share, slip_share, num_terms)
        for index in range(count)
    ]


def long_completion(terms: Sequence[int]) -> str:
    """The answer with every partial sum: ``<think>7+2=9,9+9=18</think><answer>18</answer>``."""
    totals = list(itertools.accumulate(terms))
    steps = zip(totals, terms[1:], totals[1:], strict=False)
    thinking = ",".join(f"{before}+{term}={after}" for before, term, after in steps)
    return f"<think>{thinking}</think><answer>{totals[-1]}</answer>"


def short_completion(answer: int) -> str:
    """``answer`` without a thought: ``<think></think><answer>18</answer>``."""
    return f"<think></think><answer>{answer}</answer>"


def _trace(
    rng: random.Random, long_share: float, slip_share: float, num_terms: int
) -> tuple[str, str]:
    is_long = rng.random() < long_share
    is_slip = rng.random() < slip_share
    terms = _training_terms(rng, num_terms)
    prompt = problem_of(terms).text
    if is_long:
        return prompt, long_completion(terms)
    return prompt, short_completion(_slip(rng, sum(terms)) if is_slip else sum(terms))


def _slip(rng: random.Random, total: int) -> int:
    """A positive number near ``total`` and unlike it."""
    wrong = [
        total + error
        for error in range(-_LARGEST_SLIP, _LARGEST_SLIP + 1)
        if error and total > -error
    ]
    return rng.choice(wrong)


def _training_terms(rng: random.Random, num_terms: int) -> list[int]:
    while True:
        terms = _draw_terms(rng, num_terms)
        if not is_held_out(problem_of(terms)):
            return terms


def _draw_terms(rng: random.Random, num_terms: int) -> list[int]:
    if not _MIN_NUM_TERMS <= num_terms <= _MAX_NUM_TERMS:
        raise ConfigError(
            f"num_terms must be within {_MIN_NUM_TERMS}..{_MAX_NUM_TERMS}, got {num_terms} "
            f"(use {DEFAULT_NUM_TERMS})"
        )
    return [rng.randint(_SMALLEST_TERM, _LARGEST_TERM) for _ in range(num_terms)]


def _rng(stream: str, seed: int, index: int) -> random.Random:
    """A generator of its own per item; text seeds are hashed with SHA-512, alike everywhere."""
    return random.Random(f"{TASK_NAME}/{stream}/{seed}/{index}")
