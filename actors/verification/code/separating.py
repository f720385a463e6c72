"""Choose hidden tests by what they tell apart (DeepSeek-R1, generated test cases). Pure.

First the cases on which submissions known to be right do not agree are dropped: there the statement
or the case is at fault. Of the rest, as few as needed are kept so that each submission known to be
wrong fails at least one (greedy set cover).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")


@dataclass(frozen=True, slots=True)
class Separation(Generic[Input, Output]):
    """The chosen cases, and what they do not achieve."""

    cases: tuple[tuple[Input, Output], ...]
    """Input and expected output, in the order of the inputs."""
    num_disputed: int
    """Inputs that were dropped because right submissions fail or differ on them."""
    unbroken: tuple[int, ...]
    """Indices of wrong submissions that pass every undisputed case: more inputs are needed."""


def separating_tests(
    inputs: Sequence[Input],
    right: Sequence[Sequence[Output | None]],
    wrong: Sequence[Sequence[Output | None]],
    same: Callable[[Output, Output], bool] = lambda one, other: one == other,
) -> Separation[Input, Output]:
    """Cases that all of ``right`` agree on and that break all of ``wrong``.

    ``right[i][j]`` is the output of right submission i on input j, None where it failed; at least
    one is needed. Raises ``ValueError`` when a row does not have one output an input.
    """
    if not right or any(len(row) != len(inputs) for row in (*right, *wrong)):
        raise ValueError("at least one right submission, and one output for each input in each row")
    expected = {
        case: output
        for case in range(len(inputs))
        if (output := _agreed([row[case] for row in right], same)) is not None
    }
    breaks = {
        case: {
            index
            for index, row in enumerate(wrong)
            if (found := row[case]) is None or not same(found, output)
        }
        for case, output in expected.items()
    }
    chosen = _cover(breaks)
    broken = set[int]().union(*breaks.values())
    return Separation(
        cases=tuple((inputs[case], expected[case]) for case in sorted(chosen)),
        num_disputed=len(inputs) - len(expected),
        unbroken=tuple(index for index in range(len(wrong)) if index not in broken),
    )


def _agreed(
    outputs: Sequence[Output | None], same: Callable[[Output, Output], bool]
) -> Output | None:
    first = outputs[0]
    if first is None or not all(other is not None and same(first, other) for other in outputs):
        return None
    return first


def _cover(breaks: dict[int, set[int]]) -> list[int]:
    """Again and again the case that breaks most of what is unbroken; the earliest of equals."""
    chosen, open_ones = [], set[int]().union(*breaks.values())
    while open_ones:
        best = max(breaks, key=lambda case: (len(breaks[case] & open_ones), -case))
        chosen.append(best)
        open_ones -= breaks[best]
    return chosen
