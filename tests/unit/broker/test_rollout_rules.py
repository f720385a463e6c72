"""Leases of prompts and what becomes of their rollouts."""

from __future__ import annotations

import pytest

from broker import rollout_rules
from broker.events import Counter, DeadLettered
from common.errors import RefusedError
from common.messages import GroupCounts, Lease
from common.types import EvictReason
from tests.builders import version
from tests.unit.broker.ledger_driver import Driver


def test_nothing_is_leased_before_the_learner_has_announced_weights() -> None:
    driver = Driver(announced=False)
    assert driver.lease() is None
    driver.announce(version(0))
    assert driver.leased().lease.group_id == 0


def test_an_actor_of_another_incarnation_gets_no_prompt() -> None:
    driver = Driver()
    driver.resume(0, incarnation=1, forked=True)
    assert driver.lease(version(0)) is None
    ours = version(0, incarnation=1)
    before = rollout_rules.lease_prompt(driver.ledger, "actor-0", ours, driver.source)
    assert before.outcome is None
    driver.announce(ours)
    assert driver.lease(version(0)) is None
    assert driver.lease(version(0, incarnation=1)) is not None


def test_an_actor_that_claims_weights_which_were_never_announced_gets_no_prompt() -> None:
    driver = Driver()
    claim = rollout_rules.lease_prompt(driver.ledger, "actor-0", version(50), driver.source)
    assert claim.outcome is None


def test_at_most_lag_plus_one_batches_are_outstanding() -> None:
    assert Driver(max_policy_lag=0).num_leasable() == 2
    assert Driver(max_policy_lag=1).num_leasable() == 4
    assert Driver(max_policy_lag=3).num_leasable() == 8


def test_nothing_is_sampled_that_no_batch_of_the_run_will_take() -> None:
    driver = Driver(max_policy_lag=5, num_steps=2)
    assert driver.num_leasable() == 4


def test_the_deadline_is_that_of_the_leasing_actors_version_not_of_the_newest() -> None:
    driver = Driver(max_policy_lag=2)
    driver.step(0)
    driver.leased(version(0))
    driver.leased(version(1))
    deadlines = [group.deadline_step for group in driver.ledger.groups.values()]
    assert deadlines[-2:] == [2, 3]


def test_an_exhausted_source_leases_nothing_more() -> None:
    driver = Driver(num_prompts=1)
    assert driver.num_leasable() == 1


def test_the_first_result_of_an_index_wins_and_a_later_attempt_is_a_duplicate() -> None:
    driver = Driver()
    first = driver.leased()
    driver.do(rollout_rules.release_prompt(driver.ledger, first.lease, lost=True))
    second = driver.leased(owner="actor-1")
    assert second.lease.group_id == first.lease.group_id
    assert driver.submit(first, 0) == "accepted"
    assert driver.submit(second, 0) == "duplicate"
    assert driver.ledger.groups[0].indices[0].attempt == first.lease.attempt
    assert driver.ledger.state.counters[Counter.DUPLICATE] == 1


def test_a_result_under_an_expired_attempt_is_late_once_a_newer_one_is_there() -> None:
    driver = Driver()
    first = driver.leased()
    driver.do(rollout_rules.release_prompt(driver.ledger, first.lease, lost=True))
    second = driver.leased(owner="actor-1")
    assert driver.submit(second, 0) == "accepted"
    assert driver.submit(first, 0) == "late"
    assert driver.ledger.state.counters[Counter.LATE] == 1


def test_a_resent_rollout_gets_the_same_answer_and_counts_nothing() -> None:
    driver = Driver()
    lease = driver.leased()
    assert driver.submit(lease, 0) == "accepted"
    before = len(driver.history)
    assert driver.submit(lease, 0) == "accepted"
    assert len(driver.history) == before


def test_two_contents_under_one_attempt_quarantine_the_group() -> None:
    driver = Driver()
    lease = driver.leased()
    assert driver.submit(lease, 0, content="a") == "accepted"
    assert driver.submit(lease, 0, content="b") == "quarantined"
    assert driver.ledger.state.num_evicted == {EvictReason.QUARANTINED: 1}
    assert driver.ledger.state.counters[Counter.QUARANTINED] == 1
    assert driver.payloads.kept == set()


def test_a_second_content_for_a_group_that_the_learner_holds_changes_nothing() -> None:
    driver = Driver()
    lease = driver.leased()
    group_id = driver.finish(lease)
    assert driver.pull(0) == [group_id]
    assert driver.submit(lease, 0, content="b") == "quarantined"
    assert driver.ledger.state.handed_over == [group_id]


def test_an_attempt_that_was_never_granted_is_refused() -> None:
    driver = Driver()
    lease = driver.leased()
    never = Lease(group_id=0, indices=(0,), attempt=lease.lease.attempt + 5)
    with pytest.raises(RefusedError, match="unknown_lease"):
        driver.submit(type(lease)(prompt=lease.prompt, lease=never), 0)
    beyond = Lease(group_id=7, indices=(0,), attempt=1)
    with pytest.raises(RefusedError, match="never admitted"):
        driver.submit(type(lease)(prompt=lease.prompt, lease=beyond), 0)


def test_attempts_are_never_used_twice_even_after_a_restart() -> None:
    driver = Driver()
    used = {driver.leased().lease.attempt for _ in range(2)}
    replayed = type(driver.ledger).replay(driver.rules, None, driver.history)
    assert replayed.state == driver.ledger.state
    driver.engine.ledger = replayed
    assert driver.leased().lease.attempt not in used


def test_a_group_that_was_given_back_untouched_gets_a_fresh_deadline() -> None:
    driver = Driver(max_policy_lag=2)
    lease = driver.leased(version(0))
    driver.do(rollout_rules.release_prompt(driver.ledger, lease.lease))
    driver.leased(version(1))
    assert driver.ledger.groups[0].deadline_step == 3


def test_a_group_with_old_tokens_keeps_its_deadline_when_others_finish_it() -> None:
    driver = Driver(max_policy_lag=2)
    lease = driver.leased(version(0))
    driver.submit(lease, 0)
    driver.do(rollout_rules.release_prompt(driver.ledger, lease.lease))
    rest = driver.leased(version(1))
    assert rest.lease.indices == (1,)
    assert driver.ledger.groups[0].deadline_step == 2


def test_tokens_older_than_the_lease_promised_are_resampled_when_no_batch_can_take_them() -> None:
    driver = Driver(max_policy_lag=0)
    driver.step(0)
    lease = driver.leased(version(1))
    assert driver.submit(lease, 0, at=(version(0), version(1))) == "late"
    assert driver.ledger.groups[lease.lease.group_id].in_phase(
        type(driver.ledger.groups[lease.lease.group_id].indices[0].phase).WAITING
    ) == [0]


def test_errors_beyond_max_attempts_dead_letter_the_group_with_all_reasons() -> None:
    driver = Driver(max_attempts=3)
    for number in range(3):
        lease = driver.leased()
        assert lease.lease.group_id == 0
        release = rollout_rules.release_prompt(driver.ledger, lease.lease, error=f"e{number}")
        driver.do(release)
    assert driver.ledger.counts == GroupCounts(admitted=1, dead_lettered=1)
    (letter,) = (event for event in driver.history if isinstance(event, DeadLettered))
    assert letter.errors == tuple(
        f"index {index}, actor-0: e{number}" for number in range(3) for index in range(2)
    )


def test_vanished_owners_weigh_less_than_errors_but_not_nothing() -> None:
    driver = Driver(max_attempts=1)
    for _ in range(rollout_rules.LOST_PER_ERROR - 1):
        lease = driver.leased()
        driver.do(rollout_rules.release_prompt(driver.ledger, lease.lease, lost=True))
    assert driver.ledger.counts.dead_lettered == 0
    lease = driver.leased()
    driver.do(rollout_rules.release_prompt(driver.ledger, lease.lease, lost=True))
    assert driver.ledger.counts.dead_lettered == 1


def test_releasing_a_lease_twice_changes_nothing_the_second_time() -> None:
    driver = Driver()
    lease = driver.leased()
    driver.do(rollout_rules.release_prompt(driver.ledger, lease.lease))
    assert rollout_rules.release_prompt(driver.ledger, lease.lease).events == ()
    assert driver.ledger.state.num_redelivered == 2  # both indices, once


def test_a_group_is_leased_while_anybody_holds_a_part_and_pending_otherwise() -> None:
    driver = Driver()
    lease = driver.leased()
    assert driver.ledger.counts == GroupCounts(admitted=1, leased=1)
    driver.submit(lease, 0)
    driver.submit(lease, 1)
    assert driver.ledger.counts == GroupCounts(admitted=1, pending=1)
    rollout = driver.lease_rollout()
    assert rollout is not None
    assert driver.ledger.counts == GroupCounts(admitted=1, leased=1)
    driver.judge(rollout)
    assert driver.ledger.counts == GroupCounts(admitted=1, pending=1)


def test_a_collect_run_leases_up_to_its_bound_without_any_weights() -> None:
    driver = Driver(kind="collect", max_outstanding_groups=3)
    assert driver.num_leasable() == 3
