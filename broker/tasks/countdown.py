"""Countdown: make an expression over given numbers that equals a target.

The task of TinyZero, with the rule that the verifier keeps written into the prompt. Every problem
is solvable by construction. As with chain addition, a problem is a pure function of seed and index,
and a hash of its text decides whether it is held out.
"""

from __future__ import annotations

import json
import random
from fractions import Fraction

from broker.tasks.problem import Problem, is_held_out_text
from common.errors import ConfigError

TASK_NAME = "countdown"
DEFAULT_NUM_NUMBERS = 4
DEFAULT_LARGEST = 20
DEFAULT_LARGEST_TARGET = 100

_MIN_NUM_NUMBERS, _MAX_NUM_NUMBERS = 2, 8
_MIN_LARGEST = 4
_MAX_DRAWS_PER_PROBLEM = 10_000
_MAX_DRAWS_PER_HELD_OUT = 64


def prompt_text(numbers: list[int], target: int) -> str:
    """The task with its whole rule, so that no answer is wrong by a rule that was not stated."""
    return (
        f"Using the numbers {', '.join(map(str, numbers))}, write an arithmetic expression that "
        f"equals {target}. Use every number exactly once, with +, -, *, / and parentheses; no "
        "other operators or numbers, and no joining of digits. Division is exact: fractions may "
        "occur on the way. Give the expression alone as the final answer, without an equals sign"
    )


def prompt_at(
    seed: int,
    index: int,
    *,
    num_numbers: int = DEFAULT_NUM_NUMBERS,
    largest: int = DEFAULT_LARGEST,
    largest_target: int = DEFAULT_LARGEST_TARGET,
) -> Problem:
    """Training problem number ``index`` (from 0) of the endless stream that ``seed`` names."""
    if index < 0:
        raise ConfigError(f"prompt index must be >= 0, got {index} (use 0 for the first prompt)")
    rng = random.Random(f"{TASK_NAME}/prompt/{seed}/{index}")
    while True:
        candidate = _problem(rng, num_numbers, largest, largest_target)
        if not is_held_out_text(candidate.text):
            return candidate


def held_out(
    seed: int,
    count: int,
    *,
    num_numbers: int = DEFAULT_NUM_NUMBERS,
    largest: int = DEFAULT_LARGEST,
    largest_target: int = DEFAULT_LARGEST_TARGET,
) -> list[Problem]:
    """``count`` distinct held-out problems; a larger ``count`` extends a smaller one."""
    rng = random.Random(f"{TASK_NAME}/held-out/{seed}/0")
    found: dict[str, Problem] = {}
    for _ in range(count * _MAX_DRAWS_PER_HELD_OUT):
        candidate = _problem(rng, num_numbers, largest, largest_target)
        if is_held_out_text(candidate.text):
            found[candidate.problem_id] = candidate
            if len(found) == count:
                return list(found.values())
    raise ConfigError(
        f"{TASK_NAME} with num_numbers = {num_numbers} and largest = {largest} has too few "
        f"held-out problems for count = {count}, found {len(found)} (raise largest)"
    )


def _problem(rng: random.Random, num_numbers: int, largest: int, largest_target: int) -> Problem:
    """Draw numbers and combine them at random until the value is a target that may be asked for."""
    _check_options(num_numbers, largest, largest_target)
    for _ in range(_MAX_DRAWS_PER_PROBLEM):
        numbers = [rng.randint(1, largest) for _ in range(num_numbers)]
        solution, value = _combine(rng, numbers)
        if value.denominator == 1 and 1 <= value <= largest_target:
            return _problem_of(numbers, int(value), solution)
    raise ConfigError(
        f"{TASK_NAME} with largest = {largest} hardly ever gives a target up to {largest_target} "
        "(raise largest_target)"
    )


def _problem_of(numbers: list[int], target: int, solution: str) -> Problem:
    return Problem(
        problem_id=f"{TASK_NAME}/{'-'.join(map(str, numbers))}={target}",
        text=prompt_text(numbers, target),
        answer=solution,
        task="countdown",
        fields_json=json.dumps({"numbers": numbers, "target": target}),
    )


def _combine(rng: random.Random, numbers: list[int]) -> tuple[str, Fraction]:
    """A random expression that uses every number once, in parentheses throughout."""
    parts = [(str(number), Fraction(number)) for number in numbers]
    while len(parts) > 1:
        (left, a), (right, b) = (parts.pop(rng.randrange(len(parts))) for _ in range(2))
        operator = rng.choice("+-*/" if b else "+-*")
        match operator:
            case "+":
                value = a + b
            case "-":
                value = a - b
            case "*":
                value = a * b
            case _:
                value = a / b
        parts.append((f"({left}{operator}{right})", value))
    solution, value = parts[0]
    return solution.removeprefix("(").removesuffix(")"), value


def _check_options(num_numbers: int, largest: int, largest_target: int) -> None:
    if not _MIN_NUM_NUMBERS <= num_numbers <= _MAX_NUM_NUMBERS:
        raise ConfigError(
            f"num_numbers must be within {_MIN_NUM_NUMBERS}..{_MAX_NUM_NUMBERS}, got {num_numbers} "
            f"(use {DEFAULT_NUM_NUMBERS})"
        )
    for name, value, low, default in (
        ("largest", largest, _MIN_LARGEST, DEFAULT_LARGEST),
        ("largest_target", largest_target, 1, DEFAULT_LARGEST_TARGET),
    ):
        if not low <= value <= 10**6:
            raise ConfigError(f"{name} must be within {low}..{10**6}, got {value} (use {default})")
