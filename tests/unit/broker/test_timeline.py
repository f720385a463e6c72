"""Ages along the tree of weight versions."""

from __future__ import annotations

from broker.timeline import Timeline
from tests.builders import version


def test_a_version_on_the_current_branch_is_as_old_as_its_step() -> None:
    timeline = Timeline().forked(1, 8)
    assert timeline.effective_step(version(5)) == 5
    assert timeline.effective_step(version(8)) == 8
    assert timeline.effective_step(version(9, incarnation=1)) == 9


def test_a_version_of_the_lost_branch_ages_by_the_way_back_to_the_fork() -> None:
    timeline = Timeline().forked(1, 8)
    now = 9
    assert now - timeline.effective_step(version(10)) == (now - 8) + (10 - 8)


def test_after_two_forks_the_age_counts_from_where_the_branches_really_met() -> None:
    timeline = Timeline().forked(1, 8).forked(2, 5)
    now = 6
    assert now - timeline.effective_step(version(10)) == (now - 5) + (10 - 5)
    assert now - timeline.effective_step(version(9, incarnation=1)) == (now - 5) + (9 - 5)
    assert timeline.effective_step(version(6, incarnation=2)) == 6


def test_an_age_may_reach_back_before_the_first_step() -> None:
    assert Timeline().forked(1, 0).effective_step(version(3)) == -3
