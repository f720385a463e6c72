"""Guards decide on numbers alone: what is a spike, which rank differs, what a float32 holds."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.config.guards import GuardsConfig
from learner.checkpoints.step_record import StepStatistics
from learner.health.guards import Mismatch, SpikeGuard, differing_ranks, is_finite_float32

_NORMS = st.floats(min_value=1e-3, max_value=1e3)


def _guard(norms: list[float], **settings: object) -> SpikeGuard:
    guard = SpikeGuard(dataclasses.replace(GuardsConfig(spike="skip"), **settings))  # type: ignore[arg-type]
    guard.remember(*(StepStatistics(loss=0.01, grad_norm=norm) for norm in norms))
    return guard


def test_a_norm_far_above_the_median_is_refused_with_value_median_and_key() -> None:
    guard = _guard([1.0] * 9 + [3.0] * 11)
    assert guard.refuse(0.0, 29.9) == ""
    assert guard.refuse(0.0, 36.0) == (
        "grad_norm 36 is 12.0 times the median 3 of 20 steps, "
        "learner.guards.max_grad_norm_factor is 10"
    )


def test_a_spike_that_was_taken_does_not_move_the_limit() -> None:
    guard = _guard([1.0] * 20 + [1e6])
    assert "times the median 1 of" in guard.refuse(0.0, 11.0)


def test_nothing_is_a_spike_before_ten_steps() -> None:
    assert _guard([1.0] * 9).refuse(0.0, 1e9) == ""
    assert _guard([1.0] * 10).refuse(0.0, 1e9) != ""


def test_the_window_forgets_what_lies_before_it() -> None:
    guard = _guard([1.0] * 100 + [8.0] * 10, spike_window=10)
    assert guard.refuse(0.0, 70.0) == ""
    assert len(guard.taken) == 10


def test_a_loss_counts_only_where_it_has_a_limit() -> None:
    assert _guard([1.0] * 20).refuse(-50.0, 1.0) == ""
    assert _guard([1.0] * 20, max_loss_factor=100.0).refuse(-50.0, 1.0).startswith("loss 50 is")
    assert _guard([1.0] * 20, max_grad_norm_factor=0.0).refuse(0.0, 1e9) == ""


def test_warn_says_the_same_and_refuses_nothing() -> None:
    guard = _guard([1.0] * 20, spike="warn")
    assert guard.refuse(0.0, 50.0) == ""
    assert guard.warning(0.0, 50.0).startswith("grad_norm 50 is 50.0 times")
    assert _guard([1.0] * 20, spike="off").warning(0.0, 50.0) == ""


@given(st.lists(_NORMS, min_size=1, max_size=60), st.lists(_NORMS, max_size=60), _NORMS)
def test_a_guard_that_remembers_in_two_parts_decides_as_one_that_saw_all(
    before: list[float], after: list[float], norm: float
) -> None:
    """A resumed run remembers records first, then its own steps."""
    whole, parts = _guard(before + after), _guard(before)
    parts.remember(*(StepStatistics(loss=0.01, grad_norm=item) for item in after))
    assert parts.refuse(0.0, norm) == whole.refuse(0.0, norm)
    recent = (before + after)[-50:]
    expected = len(recent) >= 10 and norm > 10 * float(np.median(recent))
    assert bool(whole.refuse(0.0, norm)) == expected


def test_the_rank_that_differs_from_the_majority_is_named_with_its_tensor() -> None:
    same = {"buffer inv_freq": "aa", "weight norm": "bb"}
    other = same | {"weight norm": "cc"}
    assert differing_ranks([same, same]) == []
    assert differing_ranks([other, same, same]) == [Mismatch(0, "weight norm")]
    (found,) = differing_ranks([same, other])
    assert (found.rank, found.name) == (1, "weight norm")
    assert "rank 1 holds another weight norm" in found.message()


def test_shards_that_only_some_ranks_hold_are_compared_among_those() -> None:
    ranks = [{"w at [0]": "a"}, {"w at [4]": "b"}, {"w at [0]": "a"}, {"w at [4]": "x"}]
    assert differing_ranks(ranks) == [Mismatch(3, "w at [4]")]


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_number_is_a_finite_float32_if_numpy_says_so(value: float) -> None:
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    if is_finite_float32([value]):
        assert math.isfinite(rounded)
    else:
        assert not math.isfinite(value) or abs(value) > 3.4028234e38
