"""A learner that starts again: replay, put back, fork."""

from __future__ import annotations

import pytest

from broker import step_rules
from common.errors import RefusedError
from common.messages import GroupCounts
from common.types import EvictReason
from tests.builders import version
from tests.unit.broker.ledger_driver import Driver


def test_groups_handed_over_but_in_no_record_wait_again() -> None:
    driver = Driver()
    group_id = driver.verified()
    driver.pull(0)
    driver.resume(0)
    assert driver.ledger.counts == GroupCounts(admitted=1, pending=1)
    assert driver.pull(0) == [group_id]


def test_stepped_groups_that_are_listed_stay_stepped() -> None:
    driver = Driver()
    first, second = driver.step(0), driver.step(1)
    driver.resume(0, [first, second])
    assert driver.ledger.state.stepped == {0: tuple(first), 1: tuple(second)}
    assert driver.ledger.state.policy_step == 2


def test_a_record_written_before_the_commit_was_heard_is_a_commit() -> None:
    driver = Driver()
    group_ids = [driver.verified(), driver.verified()]
    driver.pull(0)
    driver.resume(0, [group_ids])
    assert driver.ledger.state.stepped == {0: tuple(group_ids)}
    assert driver.ledger.state.policy_step == 1


def test_trained_groups_are_never_given_again() -> None:
    driver = Driver()
    group_ids = driver.step(0)
    driver.checkpoint(1)
    with pytest.raises(RefusedError, match="trained"):
        driver.resume(0, [group_ids])
    with pytest.raises(RefusedError, match="gone"):
        driver.resume(1, [group_ids])
    assert driver.ledger.counts == GroupCounts(admitted=2, trained=2)


def test_a_learner_that_starts_at_a_checkpoint_proves_that_it_was_committed() -> None:
    driver = Driver()
    driver.step(0)
    driver.resume(1)
    assert driver.ledger.counts == GroupCounts(admitted=2, trained=2)


def test_a_fork_puts_the_groups_of_the_lost_steps_back_and_ages_their_tokens() -> None:
    driver = Driver(max_policy_lag=3)
    driver.step(0)
    lost = driver.step(1)
    driver.resume(1, incarnation=1, forked=True)
    assert driver.ledger.state.policy_step == 1
    assert driver.ledger.state.stepped == {}
    assert {driver.ledger.groups[group].deadline_step for group in lost} == {4}
    assert driver.pull(1) == lost


def test_tokens_of_the_lost_branch_age_by_the_way_back_and_forth() -> None:
    driver = Driver(max_policy_lag=3)
    for step in range(3):
        driver.step(step)
    driver.checkpoint(1)
    group_id = driver.verified(version(3))
    assert driver.ledger.groups[group_id].deadline_step == 6
    driver.resume(1, incarnation=1, forked=True)
    # version 3 is two steps past the fork at 1, so it is as old as step -1
    assert driver.ledger.groups[group_id].deadline_step == 2


def test_groups_that_can_meet_no_deadline_after_a_fork_are_evicted_and_counted() -> None:
    driver = Driver(max_policy_lag=1)
    for step in range(3):
        driver.step(step)
    driver.checkpoint(1)
    stale = driver.verified(version(3))
    driver.resume(1, incarnation=1, forked=True)
    # version 3 is now as old as step -1, too old for step 1; versions 1 and 2 are not
    assert driver.ledger.state.num_evicted == {EvictReason.STALE: 1}
    assert stale not in driver.ledger.groups
    assert driver.ledger.counts.pending == 4


def test_a_fork_may_go_back_past_a_committed_checkpoint() -> None:
    driver = Driver()
    driver.step(0)
    driver.step(1)
    driver.checkpoint(2)
    driver.resume(1, incarnation=1, forked=True)
    assert driver.ledger.state.policy_step == 1
    assert driver.ledger.counts.trained == 4


def test_an_older_incarnation_or_a_second_fork_of_the_same_name_is_refused() -> None:
    driver = Driver()
    driver.resume(0, incarnation=1, forked=True)
    with pytest.raises(RefusedError, match="stale_incarnation"):
        driver.resume(0, incarnation=0)
    driver.announce(version(0, incarnation=1))
    for _ in range(2):
        driver.verified(version(0, incarnation=1))
    driver.commit(0, driver.pull(0), incarnation=1)
    with pytest.raises(RefusedError, match="stale_incarnation"):
        driver.resume(0, incarnation=1, forked=True)


def test_records_with_a_gap_or_a_group_twice_are_refused() -> None:
    driver = Driver()
    group_ids = driver.step(0)
    with pytest.raises(RefusedError, match="two step records"):
        driver.resume(0, [group_ids, group_ids])


def test_a_sealed_run_goes_on_when_a_learner_resumes() -> None:
    driver = Driver()
    driver.leased()
    driver.do(step_rules.end_run(driver.ledger))
    assert driver.lease() is None
    driver.resume(0)
    assert driver.leased().lease.group_id == 1


def test_a_fork_that_is_sent_again_is_the_same_fork() -> None:
    driver = Driver(max_policy_lag=3)
    for step in range(3):
        driver.step(step)
    driver.checkpoint(1)
    group_id = driver.verified(version(3))
    for _ in range(2):
        driver.resume(1, incarnation=1, forked=True)
    assert driver.ledger.state.timeline.forks[-1].incarnation == 1
    assert len(driver.ledger.state.timeline.forks) == 1
    assert driver.ledger.groups[group_id].deadline_step == 2


def test_a_step_that_the_checkpoint_covers_cannot_be_replayed() -> None:
    driver = Driver()
    group_ids = driver.step(0)
    with pytest.raises(RefusedError, match="gone"):
        driver.resume(1, [group_ids])
    assert driver.ledger.counts == GroupCounts(admitted=2, leased=2)


def test_a_newer_incarnation_is_a_fork_even_if_the_learner_died_before_it_could_say_so() -> None:
    driver = Driver(max_policy_lag=3)
    for step in range(3):
        driver.step(step)
    driver.checkpoint(1)
    group_id = driver.verified(version(3))
    driver.resume(1, incarnation=1)
    assert driver.ledger.groups[group_id].deadline_step == 2
