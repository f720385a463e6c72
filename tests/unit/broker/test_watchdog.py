"""A run that stands still ends with a reason."""

from __future__ import annotations

from broker import events
from broker.watchdog import Watchdog
from common.types import Role
from tests.builders import version

ALL = (Role.ACTOR, Role.VERIFIER, Role.LEARNER)
HANDED_OVER = events.HandedOver(group_ids=(1,), policy_step=0)
LEASED = events.Leased(
    group_id=1, indices=(0,), attempt=1, owner="a", version=version(0), deadline_step=0
)


def _watchdog() -> Watchdog:
    return Watchdog(ALL, no_progress_s=600.0, max_absence_s=7200.0, now_s=0.0)


def test_nothing_moving_with_everybody_present_is_a_complaint() -> None:
    watchdog = _watchdog()
    assert watchdog.complaint(ALL, 599.0) is None
    assert watchdog.complaint(ALL, 600.0) == (
        "all roles are present but nothing has moved for 600 s"
    )


def test_progress_starts_the_clock_anew_but_leasing_again_and_again_does_not() -> None:
    watchdog = _watchdog()
    watchdog.observe([HANDED_OVER], 500.0)
    watchdog.observe([LEASED], 900.0)
    assert watchdog.complaint(ALL, 1099.0) is None
    assert watchdog.complaint(ALL, 1100.0) is not None


def test_a_role_that_is_away_suspends_the_clock_up_to_the_longest_absence() -> None:
    watchdog = _watchdog()
    watchdog.complaint(ALL, 100.0)
    without_learner = (Role.ACTOR, Role.VERIFIER)
    assert watchdog.complaint(without_learner, 7299.0) is None
    assert watchdog.complaint(ALL, 7299.5) is None
    assert watchdog.complaint(without_learner, 14_000.0) is None
    assert watchdog.complaint(without_learner, 14_499.5) == (
        "no learner for 7200 s (start it again, or raise broker.max_absence_s)"
    )


def test_a_run_that_has_ended_may_rest() -> None:
    watchdog = _watchdog()
    watchdog.rest(10_000.0)
    assert watchdog.complaint(ALL, 10_599.0) is None
