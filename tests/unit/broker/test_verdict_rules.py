"""Leases of rollouts and what becomes of their verdicts."""

from __future__ import annotations

import pytest

from broker import verdict_rules
from broker.groups import Phase
from common.errors import RefusedError
from common.messages import GroupCounts, RolloutLease
from common.types import Verdict, VerdictStatus
from tests.builders import version
from tests.unit.broker.ledger_driver import GRADED, Driver

INFRA = Verdict(status=VerdictStatus.INFRA_ERROR, reward=None, reason="child died")
BAD = Verdict(status=VerdictStatus.BAD_INPUT, reward=None, reason="no gold")
WRONG = Verdict(status=VerdictStatus.GRADED, reward=0.0)


def _generated(driver: Driver) -> None:
    lease = driver.leased()
    for index in lease.lease.indices:
        driver.submit(lease, index)


def _rollout(driver: Driver, owner: str = "verifier-0") -> RolloutLease:
    lease = driver.lease_rollout(owner)
    assert lease is not None
    return lease


def test_each_rollout_is_leased_to_one_verifier_at_a_time() -> None:
    driver = Driver()
    _generated(driver)
    first, second = _rollout(driver), _rollout(driver, "verifier-1")
    assert first.rollout.rollout_id != second.rollout.rollout_id
    assert driver.lease_rollout() is None


def test_the_most_urgent_rollout_goes_first() -> None:
    driver = Driver(max_policy_lag=2)
    late = driver.leased(version(1))
    soon = driver.leased(version(0))
    driver.submit(late, 0, at=(version(1),))
    driver.submit(soon, 0)
    assert _rollout(driver).rollout.rollout_id.group_id == soon.lease.group_id


def test_an_infrastructure_error_is_no_reward_and_sends_the_rollout_out_again() -> None:
    driver = Driver()
    _generated(driver)
    first = _rollout(driver)
    assert driver.judge(first, INFRA) == "accepted"
    assert driver.ledger.groups[0].in_phase(Phase.VERIFIED) == []
    again = _rollout(driver, "verifier-1")
    assert again.rollout == first.rollout
    assert again.verify_attempt > first.verify_attempt


def test_infrastructure_errors_without_end_dead_letter_the_group() -> None:
    driver = Driver(max_attempts=2)
    _generated(driver)
    driver.judge(_rollout(driver), INFRA)
    driver.judge(_rollout(driver), INFRA)
    assert driver.ledger.counts == GroupCounts(admitted=1, dead_lettered=1)


def test_data_that_nobody_can_judge_drops_the_group_at_once() -> None:
    driver = Driver()
    _generated(driver)
    assert driver.judge(_rollout(driver), BAD) == "accepted"
    assert driver.ledger.counts == GroupCounts(admitted=1, dead_lettered=1)
    assert driver.payloads.kept == set()


def test_a_limit_exceeded_verdict_is_a_judgement_with_its_reward() -> None:
    driver = Driver()
    _generated(driver)
    slow = Verdict(status=VerdictStatus.LIMIT_EXCEEDED, reward=0.0)
    lease = _rollout(driver)
    assert driver.judge(lease, slow) == "accepted"
    assert driver.ledger.groups[0].indices[lease.rollout.rollout_id.index].verdict == slow


def test_the_first_verdict_wins_and_a_resent_one_gets_the_same_answer() -> None:
    driver = Driver()
    _generated(driver)
    lease = _rollout(driver)
    assert driver.judge(lease) == "accepted"
    before = len(driver.history)
    assert driver.judge(lease) == "accepted"
    assert len(driver.history) == before
    assert driver.judge(lease, WRONG) == "duplicate"
    assert driver.ledger.groups[0].indices[0].verdict == GRADED


def test_a_verdict_under_an_expired_attempt_counts_while_there_is_no_other() -> None:
    driver = Driver()
    _generated(driver)
    first = _rollout(driver)
    release = verdict_rules.release_rollout(
        driver.ledger, 0, first.rollout.rollout_id.index, first.verify_attempt, lost=True
    )
    driver.do(release)
    again = _rollout(driver)
    assert driver.judge(first, INFRA) == "late"
    assert driver.judge(first) == "accepted"
    assert driver.judge(again, WRONG) == "duplicate"


def test_a_verdict_that_was_never_asked_for_is_refused() -> None:
    driver = Driver()
    _generated(driver)
    lease = _rollout(driver)
    with pytest.raises(RefusedError, match="unknown_lease"):
        driver.do(
            verdict_rules.submit_verdict(
                driver.ledger, lease.rollout.rollout_id, lease.verify_attempt + 9, GRADED
            )
        )
