"""Countdown against a slow evaluator of its own, and against the rules of two other projects."""

from __future__ import annotations

import ast
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

import pytest

from actors.verification.countdown import judge_countdown
from common.reasoning_gym_catalog import is_installed, make_dataset

Case = tuple[str, list[int], int]

pytestmark = pytest.mark.filterwarnings("ignore::SyntaxWarning")  # of the stranger expressions

_PLAIN = re.compile(r"[0-9+\-*/() ]*")
_BEYOND = re.compile(r"\*\*|//|\.|!|(^|[-+*/(])\s*[-+]")
"""What other rules admit and ours does not: powers, floors, decimals, factorials, signs."""
_STRAY = ("*", "/", "+", "-", "(", ")", " ", ".", "!", "7", "**", "//", "=", "x", "-(")


def _expression(rng: random.Random, numbers: list[int]) -> str:
    parts = [str(number) for number in numbers]
    while len(parts) > 1:
        left = parts.pop(rng.randrange(len(parts)))
        right = parts.pop(rng.randrange(len(parts)))
        operator = rng.choice(["+", "-", "*", "/", " + ", " - ", "**", "//"])
        text = f"{left}{operator}{right}"
        parts.append(f"({text})" if rng.random() < 0.6 else text)
    return parts[0]


def _cases(count: int, seed: int) -> Iterator[Case]:
    """Distinct expressions over the numbers among ``count``, some with a slip; mostly with the
    target that they reach.
    """
    rng = random.Random(seed)
    seen = set[tuple[str, ...]]()
    for _ in range(count):
        numbers = [rng.randint(1, 12) for _ in range(rng.randint(1, 4))]
        text = _expression(rng, numbers)
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            place = rng.randrange(len(text) + 1)
            text = text[:place] + rng.choice(_STRAY) + text[place + rng.randrange(2) :]
        if rng.random() < 0.1:
            numbers = numbers[1:] or [3]
        if (text, *map(str, numbers)) in seen:
            continue
        seen.add((text, *map(str, numbers)))
        value = _python_value(text)
        if value is None or value != int(value) or abs(value) > 10**12:
            value = Fraction(rng.randint(1, 99))
        yield text, numbers, int(value)


@lru_cache(4)
def _syntax_tree(text: str) -> ast.expr | None:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError):
        return None


@lru_cache(4)
def _python_value(text: str) -> Fraction | None:
    """Value by Python's grammar, powers and floors included; None where it has none."""
    tree = _syntax_tree(text)
    try:
        return None if tree is None else _walk(tree)
    except (ValueError, ZeroDivisionError, OverflowError, MemoryError):
        return None


def _walk(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_walk(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _walk(operand)
        case ast.BinOp(left=left, op=operator, right=right):
            return _combine(operator, _walk(left), _walk(right))
    raise ValueError("no arithmetic")


def _combine(operator: ast.operator, a: Fraction, b: Fraction) -> Fraction:
    match operator:
        case ast.Add():
            return a + b
        case ast.Sub():
            return a - b
        case ast.Mult():
            return a * b
        case ast.Div():
            return a / b
        case ast.FloorDiv():
            return Fraction(a // b)
        case ast.Pow():
            power = float(a) ** float(b)
            if isinstance(power, complex):
                raise ValueError("no real number")
            return Fraction(power)
    raise ValueError("no arithmetic")


def _slow_rule(text: str, numbers: list[int], target: int) -> bool:
    """The documented rule, read off Python's syntax tree."""
    if not _PLAIN.fullmatch(text) or "**" in text or "//" in text:
        return False
    tree = _syntax_tree(text)
    if tree is None:
        return False
    nodes = list(ast.walk(tree))
    if any(isinstance(node, ast.UnaryOp | ast.Call | ast.Tuple) for node in nodes):
        return False
    used = Counter(node.value for node in nodes if isinstance(node, ast.Constant))
    return used == Counter(numbers) and _python_value(text) == target


def _tiny_zero_rule(text: str, numbers: list[int], target: int) -> bool:
    """``compute_score`` of TinyZero's countdown.py: its characters, its numbers, its tolerance."""
    if sorted(int(digits) for digits in re.findall(r"\d+", text)) != sorted(numbers):
        return False
    if not re.fullmatch(r"[\d+\-*/().\s]+", text, re.ASCII):
        return False
    value = _python_value(text)
    return value is not None and abs(float(value) - target) < 1e-5


def _ours(text: str, numbers: list[int], target: int) -> bool:
    task = json.dumps({"numbers": numbers, "target": target})
    judgement = judge_countdown(f"<think></think><answer>{text}</answer>", task)
    assert judgement.value in (0.0, 1.0)
    return judgement.value == 1.0


def _check_slow_rule(count: int, seed: int) -> None:
    rights = []
    for case in _cases(count, seed):
        rights.append(_ours(*case))
        assert rights[-1] == _slow_rule(*case), case
    assert len(rights) > count / 2
    assert 0.1 < sum(rights) / len(rights) < 0.9  # both outcomes are met often


def test_the_rule_is_what_a_slow_evaluator_says() -> None:
    _check_slow_rule(10_000, seed=1)


@pytest.mark.slow
def test_the_rule_is_what_a_slow_evaluator_says_100000_times() -> None:
    _check_slow_rule(100_000, seed=2)


def test_tiny_zero_accepts_what_we_accept_and_more_for_known_reasons() -> None:
    more = 0
    for case in _cases(10_000, seed=3):
        ours, theirs = _ours(*case), _tiny_zero_rule(*case)
        assert theirs or not ours, case
        if theirs and not ours:
            assert _BEYOND.search(case[0]), case
            more += 1
    assert more > 100
    for text, numbers, target in (("2**3", [2, 3], 8), ("9**1", [9, 1], 9), ("-2+9", [2, 9], 7)):
        assert _tiny_zero_rule(text, numbers, target)
        assert not _ours(text, numbers, target)


@pytest.mark.slow
@pytest.mark.skipif(not is_installed(), reason="needs reasoning-gym")
def test_reasoning_gym_accepts_what_we_accept_and_more_for_known_reasons() -> None:
    score = make_dataset("countdown", {}, seed=0).score_answer
    more = 0
    for text, numbers, target in _cases(1_000, seed=4):
        if text.count("**") > 1 or not re.fullmatch(r"[0-9+\-*/()!. ]*", text):
            continue  # towers of powers never end there
        entry = {"answer": "", "metadata": {"numbers": numbers, "target": target}}
        theirs, ours = score(text, entry) == 1.0, _ours(text, numbers, target)
        assert theirs or not ours, (text, numbers, target)
        if theirs and not ours:
            assert _BEYOND.search(text), (text, numbers, target)
            more += 1
    assert more > 15


@pytest.mark.parametrize(
    "text",
    [
        "2**3",
        "9**9",
        "9**9**9**9",
        "9* *9",
        "2^3",
        "4!",
        "03",
        "3.",
        "3.0",
        "+3",
        "-3+6",
        "(3)(1)",
        "3=3",
        "3,",
        "3j",
        "0x3",
        "1_0",
        "1e1",
        "\u0663",
        "\u00b3",
        "3\u00d7\u00d71",
        "3;3",
        "3#",
        "int(3)",
        "(lambda:3)()",
        "3 if 1 else 3",
        "[3][0]",
    ],
)
def test_what_is_no_plain_arithmetic_is_refused(text: str) -> None:
    for numbers in ([2, 3], [9, 9], [3], [3, 1], [10], [3, 6], [8], [9, 9, 9, 9], [3, 3]):
        for target in (3, 8, 9, 10, 24, 387420489):
            assert not _ours(text, numbers, target)
