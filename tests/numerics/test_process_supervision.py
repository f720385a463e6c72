"""Rewards of steps become advantages of tokens, against the paper's loops."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.objectives.advantages import StdKind, normalized_advantages
from learner.objectives.process import normalized_steps, token_advantages
from tests.numerics import reference_objectives

_REWARDS = st.lists(st.integers(-5, 5), min_size=1, max_size=8)
_STDS = st.sampled_from(["population", "sample", "none"])


def _advantages(
    steps: Sequence[Sequence[float]],
    ends: Sequence[Sequence[int]],
    lengths: Sequence[int],
    *,
    std: StdKind = "population",
    epsilon: float = 0.0,
) -> list[list[float]]:
    normalized = normalized_steps(steps, std=std, epsilon=epsilon)
    return [
        token_advantages(values, own, length).tolist()
        for values, own, length in zip(normalized, ends, lengths, strict=True)
    ]


def test_process_supervision_gives_the_worked_example() -> None:
    """Steps (1, 0) and (1, 1, 0): mean 0.6, deviation 0.489898."""
    first, second = _advantages([[1, 0], [1, 1, 0]], [[0, 1], [0, 1, 2]], [2, 3])
    assert first == pytest.approx([-0.408248, -1.224745], abs=5e-7)
    assert second == pytest.approx([0.408248, -0.408248, -1.224745], abs=5e-7)


def test_a_token_gets_all_steps_that_end_at_it_or_later() -> None:
    (found,) = _advantages([[1, 0]], [[1, 3]], [5])
    assert found == [0.0, 0.0, -1.0, -1.0, 0.0]
    assert found == reference_objectives.process([[1, 0]], [[1, 3]], [5])[0]


@given(_REWARDS, _STDS)
def test_one_step_an_output_is_outcome_supervision(rewards: list[int], std: StdKind) -> None:
    lengths = [1 + index % 3 for index in range(len(rewards))]
    ends = [[length - 1] for length in lengths]
    found = _advantages([[r] for r in rewards], ends, lengths, std=std, epsilon=1e-6)
    outcome = normalized_advantages(rewards, std=std, epsilon=1e-6)
    for values, advantage, length in zip(found, outcome, lengths, strict=True):
        assert values == [advantage] * length


@given(st.data())
def test_advantages_equal_the_papers_loops(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    ends = [
        sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1))) for length in lengths
    ]
    steps = [
        data.draw(st.lists(st.integers(-3, 3), min_size=len(e), max_size=len(e))) for e in ends
    ]
    expected = reference_objectives.process(steps, ends, lengths)
    for ours, theirs in zip(_advantages(steps, ends, lengths), expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-9)


def test_a_step_that_ends_outside_its_output_is_refused() -> None:
    with pytest.raises(ValueError, match="inside an output of 2 tokens"):
        token_advantages([1.0], [2], 2)
