"""The pairs of the benchmark are what they say: ours is right about each, and none is cached."""

from __future__ import annotations

import random
import re

from actors.verification.math.verifier import judge_math
from deploy.bench import math_answers as bench


def _value(pair: bench.Pair) -> float | None:
    return judge_math(str(pair["completion"]), f'{{"gold":{_quoted(str(pair["gold"]))}}}').value


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\") + '"'


def test_half_of_the_pairs_are_right_and_are_judged_so() -> None:
    pairs = list(bench._pairs(random.Random(3), 600))
    assert [_value(pair) for pair in pairs] == [pair["right"] for pair in pairs]
    assert 250 < sum(pair["right"] == 1.0 for pair in pairs) < 350


def test_most_pairs_are_plain_numbers_and_none_occurs_twice() -> None:
    pairs = list(bench._pairs(random.Random(3), 600))
    plain = sum(re.fullmatch(r"[\d.]+", str(pair["gold"])) is not None for pair in pairs)
    assert 0.65 < plain / len(pairs) < 0.75
    assert len({(pair["gold"], pair["completion"]) for pair in pairs}) == len(pairs)


def test_one_in_a_hundred_hangs_and_is_wrong() -> None:
    clean = list(bench._pairs(random.Random(3), 400))
    hanging = bench._with_hanging(clean)
    changed = [pair for pair, before in zip(hanging, clean, strict=True) if pair != before]
    assert len(changed) == 4
    assert [_value(pair) for pair in changed] == [0.0] * 4


def test_runs_are_compared_with_the_one_beside_them() -> None:
    """A machine that becomes half as fast between two repeats changes no ratio."""
    assert bench._median_of_ratios([95.0, 48.0, 190.0], [100.0, 50.0, 200.0]) == 0.95
