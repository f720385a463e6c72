"""Generated cases are kept where right programs agree, and as few as break all wrong ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.verification.code.separating import separating_tests

_ROW = st.lists(st.none() | st.integers(0, 2), min_size=6, max_size=6)


def test_three_wrong_programs_are_told_from_the_right_one() -> None:
    found = separating_tests(
        ["a", "b", "c", "d"],
        right=[[1, 2, 3, 4]],
        wrong=[[1, 2, 3, 0], [1, 0, 3, 0], [1, 2, None, 4]],
    )
    assert found.cases == (("c", 3), ("d", 4))
    assert (found.num_disputed, found.unbroken) == (0, ())


def test_cases_on_which_right_programs_fail_or_differ_are_dropped() -> None:
    found = separating_tests("abcd", right=[[1, 2, 3, 4], [1, 0, 3, None]], wrong=[[9, 9, 3, 9]])
    assert found.cases == (("a", 1),)
    assert found.num_disputed == 2


def test_a_wrong_program_that_nothing_breaks_is_named() -> None:
    found = separating_tests("ab", right=[[1, 2]], wrong=[[1, 2], [1, 0]])
    assert (found.cases, found.unbroken) == ((("b", 2),), (0,))


def test_sameness_may_be_that_of_a_special_judge() -> None:
    found = separating_tests(
        "a", right=[[1.0], [1.0001]], wrong=[[2.0]], same=lambda x, y: abs(x - y) < 0.01
    )
    assert found.cases == (("a", 1.0),)


def test_rows_must_answer_every_input() -> None:
    for right, wrong in (([], []), ([[1]], []), ([[1, 2]], [[1]])):
        with pytest.raises(ValueError, match="one output for each input"):
            separating_tests("ab", right, wrong)


@given(st.lists(_ROW, min_size=1, max_size=3), st.lists(_ROW, max_size=5))
def test_the_chosen_cases_break_all_that_can_be_broken(
    right: list[list[int | None]], wrong: list[list[int | None]]
) -> None:
    inputs = list(range(6))
    found = separating_tests(inputs, right, wrong)
    for case, output in found.cases:
        assert all(row[case] == output for row in right)
    for index, row in enumerate(wrong):
        broken = any(row[case] != output for case, output in found.cases)
        assert broken is (index not in found.unbroken)
    agreed = [x for x in inputs if right[0][x] is not None and len({r[x] for r in right}) == 1]
    for index in found.unbroken:
        assert all(wrong[index][case] == right[0][case] for case in agreed)
    assert len(found.cases) <= len(wrong)
