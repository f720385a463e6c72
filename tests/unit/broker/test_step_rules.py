"""Handing over, committing, evicting, ending."""

from __future__ import annotations

import pytest

from broker import step_rules
from common.errors import RefusedError
from common.messages import GroupCounts
from common.types import EvictReason
from tests.builders import version
from tests.unit.broker.ledger_driver import Driver


def test_verified_groups_are_handed_over_earliest_deadline_first() -> None:
    driver = Driver(max_policy_lag=2)
    late = driver.verified(version(1))
    soon = driver.verified(version(0))
    assert driver.pull(0, max_groups=1) == [soon]
    assert driver.pull(0, max_groups=1, held=(soon,)) == [late]


def test_no_more_than_a_batch_is_handed_over() -> None:
    driver = Driver()
    groups = [driver.verified() for _ in range(3)]
    assert driver.pull(0, max_groups=9) == groups[:2]
    assert driver.pull(0, max_groups=9, held=tuple(groups[:2])) == []


def test_a_group_waits_while_one_that_is_due_now_is_unfinished() -> None:
    driver = Driver(max_policy_lag=1)
    driver.step(0)
    driver.leased(version(0))
    driver.leased(version(0))
    ready = driver.verified(version(1))
    assert driver.ledger.groups[ready].deadline_step == 2
    assert driver.pull(1) == []


def test_a_pull_for_another_step_is_refused() -> None:
    driver = Driver()
    driver.verified()
    with pytest.raises(RefusedError, match="wrong_step"):
        driver.pull(1)


def test_groups_whose_reply_was_lost_are_delivered_again_to_a_learner_that_says_what_it_holds() -> (
    None
):
    driver = Driver()
    first, second = driver.verified(), driver.verified()
    assert driver.pull(0, max_groups=1) == [first]
    assert driver.pull(0, max_groups=1, held=(first,)) == [second]
    assert driver.pull(0, max_groups=1, held=(first,)) == [second]
    assert driver.pull(0, max_groups=2, held=()) == [first, second]


def test_without_a_list_the_newest_groups_beyond_what_the_batch_lacks_are_delivered_again() -> None:
    driver = Driver()
    first, second = driver.verified(), driver.verified()
    assert driver.pull(0, max_groups=2, held=None) == [first, second]
    assert driver.pull(0, max_groups=1, held=None) == [second]


def test_a_committed_step_is_stepped_and_a_checkpoint_makes_it_trained() -> None:
    driver = Driver()
    group_ids = driver.step(0)
    assert driver.ledger.counts == GroupCounts(admitted=2, leased=2)
    assert driver.ledger.state.stepped == {0: tuple(group_ids)}
    driver.checkpoint(1)
    assert driver.ledger.counts == GroupCounts(admitted=2, trained=2)
    assert driver.payloads.kept == set()


def test_payloads_of_stepped_groups_are_kept_until_a_checkpoint_covers_them() -> None:
    driver = Driver()
    driver.step(0)
    assert len(driver.payloads.kept) == 4


def test_repeated_commits_change_nothing() -> None:
    driver = Driver()
    group_ids = driver.step(0)
    before = len(driver.history)
    driver.commit(0, group_ids)
    driver.checkpoint(1)
    driver.commit(0, group_ids)
    driver.checkpoint(1)
    assert len(driver.history) == before + 1  # the one checkpoint


def test_a_step_cannot_be_committed_a_second_time_with_other_groups() -> None:
    driver = Driver()
    driver.step(0)
    with pytest.raises(RefusedError, match="other_groups"):
        driver.commit(0, [7])


def test_only_groups_that_were_handed_over_can_be_committed() -> None:
    driver = Driver()
    group_id = driver.verified()
    with pytest.raises(RefusedError, match="not_handed_over"):
        driver.commit(0, [group_id])
    with pytest.raises(RefusedError, match="gone"):
        driver.commit(0, [55])


def test_a_group_is_in_one_step_only() -> None:
    driver = Driver()
    stepped = driver.step(0)
    with pytest.raises(RefusedError, match="stepped"):
        driver.commit(1, stepped)
    group_id = driver.verified(version(1))
    assert driver.pull(1) == [group_id]
    with pytest.raises(RefusedError, match="twice"):
        driver.commit(1, [group_id, group_id])


def test_a_commit_of_a_lost_incarnation_is_refused() -> None:
    driver = Driver()
    driver.resume(0, incarnation=1, forked=True)
    with pytest.raises(RefusedError, match="stale_incarnation"):
        driver.commit(0, [], incarnation=0)


def test_a_checkpoint_of_a_step_that_was_never_committed_is_refused() -> None:
    driver = Driver()
    with pytest.raises(RefusedError, match="wrong_step"):
        driver.checkpoint(1)


def test_a_smaller_last_batch_puts_the_rest_back_and_evicts_what_is_too_old_now() -> None:
    driver = Driver(max_policy_lag=0)
    first, second = driver.verified(), driver.verified()
    assert driver.pull(0) == [first, second]
    driver.commit(0, [first])
    assert driver.ledger.state.num_evicted == {EvictReason.STALE: 1}
    assert list(driver.ledger.groups) == [first]


def test_an_evicted_group_makes_room_for_another() -> None:
    driver = Driver(max_policy_lag=0)
    first = driver.verified()
    driver.verified()
    assert driver.lease() is None
    driver.pull(0)
    driver.do(step_rules.evict_groups(driver.ledger, [first], EvictReason.ZERO_ADVANTAGE))
    assert driver.ledger.state.num_evicted == {EvictReason.ZERO_ADVANTAGE: 1}
    assert driver.num_leasable() == 1


def test_evicting_twice_counts_once_and_a_stepped_group_cannot_be_evicted() -> None:
    driver = Driver()
    group_id = driver.verified()
    for _ in range(2):
        driver.do(step_rules.evict_groups(driver.ledger, [group_id], EvictReason.NONFINITE))
    assert driver.ledger.counts.evicted == 1
    stepped = driver.step(0)
    with pytest.raises(RefusedError, match="stepped"):
        driver.do(step_rules.evict_groups(driver.ledger, stepped, EvictReason.NONFINITE))


def test_the_end_of_a_run_evicts_what_is_in_flight_and_seals() -> None:
    driver = Driver()
    driver.step(0)
    driver.checkpoint(1)
    driver.leased(version(1))
    driver.do(step_rules.end_run(driver.ledger))
    assert driver.ledger.counts == GroupCounts(admitted=3, trained=2, evicted=1)
    assert driver.ledger.state.num_evicted == {EvictReason.RUN_END: 1}
    assert driver.lease(version(1)) is None
    assert step_rules.end_run(driver.ledger).events == ()


def test_a_collector_trains_what_it_commits_and_asks_again_for_what_it_lost() -> None:
    driver = Driver(kind="collect", max_outstanding_groups=4)
    group_id = driver.verified()
    assert driver.pull(0, held=None) == [group_id]
    assert driver.pull(0, held=None) == [group_id]
    driver.commit(0, [group_id])
    driver.commit(0, [group_id])
    assert driver.ledger.counts == GroupCounts(admitted=1, trained=1)


def test_a_new_collector_process_gets_what_the_old_one_held() -> None:
    driver = Driver(kind="collect", max_outstanding_groups=4)
    driver.do(step_rules.start_collector(driver.ledger, "one"))
    group_id = driver.verified()
    assert driver.pull(0, held=()) == [group_id]
    driver.do(step_rules.start_collector(driver.ledger, "one"))
    assert driver.ledger.state.handed_over == [group_id]
    driver.do(step_rules.start_collector(driver.ledger, "two"))
    assert driver.ledger.counts == GroupCounts(admitted=1, pending=1)


def test_weights_of_a_lost_branch_cannot_be_announced() -> None:
    driver = Driver()
    driver.resume(0, incarnation=1, forked=True)
    with pytest.raises(RefusedError, match="stale_incarnation"):
        driver.announce(version(3))
    assert driver.ledger.newest_version == version(0)


def test_groups_can_be_described_again_while_the_learner_holds_them() -> None:
    driver = Driver()
    stepped = driver.step(0)
    described = step_rules.describe_groups(driver.ledger, stepped)
    assert [group.group_id for group in described] == stepped
    driver.checkpoint(1)
    with pytest.raises(RefusedError, match="gone"):
        step_rules.describe_groups(driver.ledger, stepped)
