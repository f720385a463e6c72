"""A broker that starts again under another configuration keeps the promises of the new one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker import resume_rules, rollout_rules
from broker.admission import Staleness
from broker.groups import Place
from broker.ledger import Ledger
from broker.step_rules import Pull, hand_over
from tests.builders import version
from tests.unit.broker.ledger_driver import Driver


def restarted(driver: Driver, **changed: object) -> Driver:
    """The ledger of ``driver``, replayed and adopted under other rules."""
    rules = replace(driver.rules, **changed)  # type: ignore[arg-type] # test settings
    again = Driver(announced=False)
    again.rules = rules
    again.engine.ledger = Ledger.replay(rules, None, driver.history)
    again.do(resume_rules.adopt_rules(again.ledger))
    return again


def driver_at_step_two(staleness: Staleness = "wait") -> Driver:
    """Two steps are done; groups of the first weights are open, and one of the newest."""
    driver = Driver(max_policy_lag=3, staleness=staleness)
    for _ in range(4):
        driver.verified()
    for step in range(2):
        driver.step(step)
    driver.verified(version(2))
    return driver


@pytest.mark.parametrize("staleness", ["wait", "drop_group"])
def test_a_smaller_lag_holds_for_groups_that_were_sampled_under_a_larger_one(
    staleness: Staleness,
) -> None:
    before = driver_at_step_two(staleness)
    driver = restarted(before, max_policy_lag=1)
    step = driver.ledger.state.policy_step
    left = driver.ledger.groups.values()
    lags = [
        step - v.policy_step for g in left if g.place is Place.OPEN for v in g.sampling_versions()
    ]
    assert lags
    assert max(lags) <= 1
    assert len(before.ledger.groups) > len(driver.ledger.groups)


def test_under_mask_tokens_a_smaller_lag_masks_instead() -> None:
    driver = restarted(driver_at_step_two("mask_tokens"), max_policy_lag=1)
    groups = driver.do(hand_over(driver.ledger, Pull(2, 2, ())))
    assert groups is not None
    for group in groups.groups:
        for item in group.rollouts:
            spans = item.rollout.version_spans
            assert all(2 - spans[n].version.policy_step <= 1 for n in item.trained_spans)


def test_fewer_groups_a_step_leave_no_group_behind_its_deadline() -> None:
    before = Driver(groups_per_step=3, max_policy_lag=1)
    assert before.num_leasable() == 6
    driver = restarted(before, groups_per_step=1)
    deadlines = sorted(g.deadline_step for g in driver.ledger.groups.values())
    assert deadlines == [0, 1] or deadlines == [1, 1]


def with_an_overdue_group_that_is_given_back(driver: Driver) -> int:
    """The deadline of its first group is due, then its actor is lost with all of its tokens."""
    lease = driver.leased()
    for step in range(driver.rules.max_policy_lag + 2):
        driver.step(step)
    driver.do(rollout_rules.release_prompt(driver.ledger, lease.lease, lost=True))
    return lease.lease.group_id


def test_a_group_that_waits_past_its_deadline_under_mask_tokens_keeps_its_place() -> None:
    before = Driver(staleness="mask_tokens")
    overdue = with_an_overdue_group_that_is_given_back(before)
    group = before.ledger.groups[overdue]
    assert group.is_untouched
    assert group.deadline_step < before.ledger.state.policy_step
    driver = restarted(before)
    assert driver.ledger.state == before.ledger.state
    newest = before.ledger.newest_version
    assert driver.leased(newest).lease.group_id == overdue


def test_a_group_that_waited_past_its_deadline_may_meet_one_once_nothing_is_masked() -> None:
    before = Driver(staleness="mask_tokens")
    overdue = with_an_overdue_group_that_is_given_back(before)
    driver = restarted(before, staleness="wait")
    assert driver.ledger.groups[overdue].deadline_step == driver.ledger.state.policy_step
    assert driver.ledger.window().holds()


def test_the_same_rules_change_nothing() -> None:
    before = driver_at_step_two()
    driver = restarted(before)
    assert driver.ledger.state == before.ledger.state
    assert not driver.history
