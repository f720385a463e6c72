"""The deadline arithmetic at its edges, and against brute force."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from broker.admission import (
    Window,
    choose_evictions,
    may_admit,
    may_admit_unbounded,
    may_hand_over,
    may_move,
)


def _window(counts: dict[int, int], *, step: int = 5, per_step: int = 2, handed: int = 0) -> Window:
    return Window(step, per_step, handed, counts)


def test_a_synchronous_window_admits_exactly_one_batch() -> None:
    assert may_admit(_window({5: 1}), 5)
    assert not may_admit(_window({5: 2}), 5)


def test_groups_already_handed_over_take_places_of_the_batch() -> None:
    assert may_admit(_window({5: 1}, handed=0), 5)
    assert not may_admit(_window({5: 1}, handed=1), 5)


def test_a_deadline_in_the_past_is_never_admitted() -> None:
    assert not may_admit(_window({}), 4)


def test_a_later_full_batch_refuses_an_earlier_deadline_too() -> None:
    full_later = _window({6: 4})
    assert not may_admit(full_later, 5)
    assert not may_admit(full_later, 6)
    assert may_admit(full_later, 7)


def test_a_group_may_not_take_the_place_of_one_that_is_due_now() -> None:
    assert may_hand_over(_window({5: 1, 6: 1}), 6)
    assert not may_hand_over(_window({5: 2, 6: 1}), 6)
    assert may_hand_over(_window({5: 2, 6: 1}), 5)


def test_a_full_batch_takes_no_more_groups() -> None:
    assert not may_hand_over(_window({5: 0, 6: 1}, handed=2), 6)


def test_moving_a_deadline_later_is_always_allowed_and_earlier_only_with_room() -> None:
    crowded = _window({5: 2, 6: 1})
    assert may_move(crowded, 6, 8)
    assert not may_move(crowded, 6, 5)
    assert may_move(_window({5: 1, 6: 1}), 6, 5)
    assert not may_move(_window({6: 1}), 6, 4)


def test_a_collect_run_bounds_only_what_is_outstanding() -> None:
    assert may_admit_unbounded(3, 4)
    assert not may_admit_unbounded(4, 4)


windows = st.builds(
    _window,
    st.dictionaries(st.integers(5, 9), st.integers(1, 4), max_size=4),
    per_step=st.integers(1, 4),
    handed=st.integers(0, 4),
).filter(lambda window: window.num_handed_over <= window.groups_per_step and window.holds())


def _holds(counts: dict[int, int], step: int, per_step: int, handed: int) -> bool:
    """The invariant as it is written, over far more deadlines than occur."""
    return all(
        sum(n for deadline, n in counts.items() if deadline <= d)
        <= (d - step + 1) * per_step - handed
        for d in range(step, step + 30)
    )


@given(windows, st.integers(3, 12))
def test_may_admit_is_exactly_that_the_invariant_still_holds(window: Window, at: int) -> None:
    after = {**window.num_by_deadline, at: window.num_by_deadline.get(at, 0) + 1}
    expected = at >= 5 and _holds(after, 5, window.groups_per_step, window.num_handed_over)
    assert may_admit(window, at) == expected


@given(windows)
def test_may_hand_over_is_exactly_that_the_invariant_still_holds(window: Window) -> None:
    for at in window.num_by_deadline:
        after = {**window.num_by_deadline, at: window.num_by_deadline[at] - 1}
        handed = window.num_handed_over + 1
        fits = handed <= window.groups_per_step
        expected = fits and _holds(after, 5, window.groups_per_step, handed)
        assert may_hand_over(window, at) == expected


@given(windows, st.integers(3, 12))
def test_may_move_is_exactly_that_the_invariant_still_holds(window: Window, new: int) -> None:
    for old in window.num_by_deadline:
        after = dict(window.num_by_deadline)
        after[old] -= 1
        after[new] = after.get(new, 0) + 1
        expected = (new >= 5 or new >= old) and _holds(
            after, 5, window.groups_per_step, window.num_handed_over
        )
        assert may_move(window, old, new) == expected


@given(windows)
def test_a_full_batch_leaves_no_group_whose_deadline_is_now(window: Window) -> None:
    if window.num_handed_over == window.groups_per_step:
        assert window.num_by_deadline.get(5, 0) == 0


deadlines = st.lists(st.integers(3, 8), max_size=7).map(lambda steps: dict(enumerate(steps)))


def _feasible(kept: list[int], window: Window) -> bool:
    ordered = sorted(kept)
    return all(
        step >= window.policy_step and place < window.room(step)
        for place, step in enumerate(ordered)
    )


@given(deadlines, st.integers(1, 2))
def test_evictions_are_as_few_as_possible_and_leave_a_feasible_rest(
    steps: dict[int, int], per_step: int
) -> None:
    window = _window({}, per_step=per_step)
    evicted = choose_evictions(steps, dict.fromkeys(steps, 0), window)
    assert _feasible([d for group, d in steps.items() if group not in evicted], window)
    for number in range(len(evicted)):
        for fewer in combinations(steps, number):
            rest = [d for group, d in steps.items() if group not in fewer]
            assert not _feasible(rest, window), "fewer evictions would have done"


def test_the_group_with_least_progress_is_evicted_and_the_newest_among_equals() -> None:
    window = _window({}, per_step=1)
    assert choose_evictions({1: 5, 2: 5}, {1: 0, 2: 3}, window) == [1]
    assert choose_evictions({1: 5, 2: 5}, {1: 3, 2: 3}, window) == [2]
