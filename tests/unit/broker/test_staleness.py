"""What ``mask_tokens`` and ``drop_group`` do with groups that are late; ``wait`` is the default."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from broker import rollout_rules, step_rules
from broker.events import AnyEvent
from broker.ledger import Ledger
from broker.ledger_state import LedgerState
from broker.step_rules import Pull
from common.errors import RefusedError
from common.messages import PromptLease
from common.types import EvictReason, VerifiedGroup, WeightVersion
from tests.builders import rollout_header, version
from tests.unit.broker.ledger_driver import Driver


def _driver(staleness: str, **rules: Any) -> Driver:
    chosen: dict[str, Any] = {"group_size": 1, "groups_per_step": 1, "max_policy_lag": 1}
    return Driver(staleness=staleness, **(chosen | rules))


def _pulled(driver: Driver, policy_step: int, max_groups: int = 1) -> tuple[VerifiedGroup, ...]:
    pull = Pull(policy_step, max_groups, ())
    groups = driver.do(step_rules.hand_over(driver.ledger, pull))
    return () if groups is None else groups.groups


def _finished(driver: Driver, lease: PromptLease, *spans: tuple[int, WeightVersion]) -> int:
    header = rollout_header(
        group_id=lease.lease.group_id, attempt=lease.lease.attempt, num_completion=6, spans=spans
    )
    assert driver.do(rollout_rules.submit_rollout(driver.ledger, header, "a")) == "accepted"
    rollout = driver.lease_rollout()
    assert rollout is not None
    driver.judge(rollout)
    return lease.lease.group_id


# --- drop_group -----------------------------------------------------------------------------------


def test_drop_group_fills_the_batch_without_waiting_for_a_group_that_is_due() -> None:
    for staleness, expected in (("wait", []), ("drop_group", [2])):
        driver = _driver(staleness, max_policy_lag=1)
        driver.leased(version(0))
        driver.verified(version(0))
        driver.commit(0, driver.pull(0, 1))
        driver.verified(version(1))
        assert driver.pull(1, 1) == expected


def test_drop_group_prefers_the_earliest_deadline() -> None:
    driver = _driver("drop_group", max_policy_lag=2)
    late = driver.verified(version(1))
    soon = driver.verified(version(0))
    assert driver.pull(0, 1) == [soon]
    assert driver.ledger.groups[late].deadline_step == 3


def test_drop_group_evicts_overdue_groups_at_the_commit_and_revokes_their_leases() -> None:
    driver = _driver("drop_group")
    late = driver.leased(version(0))
    driver.verified(version(0))
    driver.commit(0, driver.pull(0, 1))
    fresh = driver.verified(version(1))
    driver.commit(1, driver.pull(1, 1))
    assert driver.ledger.state.num_evicted == {EvictReason.STALE: 1}
    assert driver.engine.leases.renew("actor-0", [late.lease], 0.0) == (late.lease,)
    assert fresh in driver.ledger.groups


def test_drop_group_keeps_a_prompt_of_which_no_token_exists() -> None:
    driver = _driver("drop_group")
    lost = driver.leased(version(0))
    for step in range(2):
        driver.verified(version(step))
        group_ids = driver.pull(step, 1)
        if step == 1:  # its actor dies just before the step that it was due for is committed
            driver.do(rollout_rules.release_prompt(driver.ledger, lost.lease, lost=True))
        driver.commit(step, group_ids)
    assert driver.ledger.state.num_evicted == {}
    assert driver.leased(version(2)).lease.group_id == lost.lease.group_id
    assert driver.ledger.groups[lost.lease.group_id].deadline_step == 3


# --- mask_tokens ----------------------------------------------------------------------------------


def _late_group(driver: Driver, *spans: tuple[int, WeightVersion]) -> VerifiedGroup:
    """A group sampled since step 0 that is pulled for step 2, with the bound at 1."""
    slow = driver.leased(version(0))
    for step in range(2):
        driver.verified(version(step))
        driver.commit(step, driver.pull(step, 1))
    driver.announce(version(2))
    _finished(driver, slow, *spans)
    (group,) = _pulled(driver, 2)
    assert group.group_id == slow.lease.group_id
    return group


def test_tokens_beyond_the_bound_are_masked_and_the_rest_are_trained() -> None:
    driver = _driver("mask_tokens")
    group = _late_group(driver, (0, version(0)), (2, version(1)), (3, version(2)))
    (item,) = group.rollouts
    assert item.masked_spans == (0,)
    assert item.trained_spans == (1, 2)
    assert item.num_trained_tokens == 4


def test_a_group_without_a_token_left_leaves_as_all_masked_and_the_next_one_takes_its_place() -> (
    None
):
    driver = _driver("mask_tokens")
    slow = driver.leased(version(0))
    for step in range(2):
        driver.verified(version(step))
        driver.commit(step, driver.pull(step, 1))
    _finished(driver, slow, (0, version(0)))
    fresh = driver.verified(version(2))
    assert driver.pull(2, 1) == [fresh]
    assert driver.ledger.state.num_evicted == {EvictReason.ALL_MASKED: 1}


def test_a_mask_is_kept_for_the_replay_of_its_step() -> None:
    driver = _driver("mask_tokens")
    group = _late_group(driver, (0, version(0)), (2, version(1)), (3, version(2)))
    driver.commit(2, [group.group_id])
    driver.checkpoint(2)
    driver.resume(2, [[group.group_id]])
    assert step_rules.describe_groups(driver.ledger, [group.group_id]) == (group,)


def test_a_group_that_goes_to_a_later_batch_after_all_is_masked_anew() -> None:
    driver = _driver("mask_tokens", groups_per_step=2)
    slow = driver.leased(version(0))
    for step in range(2):
        driver.step(step)
    _finished(driver, slow, (0, version(0)), (2, version(1)), (3, version(2)))
    other = driver.verified(version(2))
    first, _ = _pulled(driver, 2, max_groups=2)
    assert first.rollouts[0].masked_spans == (0,)
    driver.commit(2, [other])  # the learner leaves the slow one out: it is put back
    driver.announce(version(3))
    (again,) = _pulled(driver, 3)
    assert again.group_id == first.group_id
    assert again.rollouts[0].masked_spans == (0, 1)


def test_the_journal_rebuilds_the_masks() -> None:
    driver = _driver("mask_tokens")
    group = _late_group(driver, (0, version(0)), (2, version(1)), (3, version(2)))
    encoded = [msgspec.msgpack.encode(event) for event in driver.history]
    history = [msgspec.msgpack.decode(event, type=AnyEvent) for event in encoded]
    replayed = Ledger.replay(driver.rules, None, history)
    assert replayed.state == driver.ledger.state
    assert step_rules.describe_groups(replayed, [group.group_id]) == (group,)
    snapshot = msgspec.msgpack.decode(msgspec.msgpack.encode(replayed.state), type=LedgerState)
    assert step_rules.describe_groups(Ledger(driver.rules, snapshot), [group.group_id]) == (group,)


def test_after_a_fork_a_middle_span_may_be_the_one_that_is_too_old() -> None:
    driver = _driver("mask_tokens")
    driver.step(0)
    driver.checkpoint(1)
    slow = driver.leased(version(1))
    for step in (1, 2):
        driver.verified(version(step))
        driver.commit(step, driver.pull(step, 1))
        driver.announce(version(step + 1))
    driver.resume(1, incarnation=1, forked=True)
    driver.announce(version(1, 1))
    # weights 0.3 of the lost branch are as far from step 1 as those of step -1 would be
    _finished(driver, slow, (0, version(1)), (2, version(3)), (4, version(1, 1)))
    (group,) = _pulled(driver, 1)
    assert group.group_id == slow.lease.group_id
    assert group.rollouts[0].masked_spans == (1,)


def test_a_rollback_that_makes_tokens_young_again_lifts_their_mask() -> None:
    driver = _driver("mask_tokens")
    group = _late_group(driver, (0, version(0)), (2, version(1)))
    assert group.rollouts[0].masked_spans == (0,)
    driver.resume(0, incarnation=1, forked=True)
    driver.announce(version(0, 1))
    while (again := _pulled(driver, 0)) and again[0].group_id != group.group_id:
        driver.do(
            step_rules.evict_groups(driver.ledger, [again[0].group_id], EvictReason.NONFINITE)
        )
    assert again[0].rollouts[0].masked_spans == ()
    assert step_rules.describe_groups(driver.ledger, [group.group_id]) == again


def test_an_actor_whose_weights_are_out_of_date_gets_nothing_to_sample() -> None:
    for staleness in ("mask_tokens", "drop_group", "wait"):
        driver = _driver(staleness, groups_per_step=2, num_steps=9)
        for step in range(2):
            driver.step(step)
        waiting = driver.leased(version(2))
        driver.do(rollout_rules.release_prompt(driver.ledger, waiting.lease))
        assert driver.lease(version(0)) is None
        assert driver.leased(version(1)).lease.group_id == waiting.lease.group_id


def test_version_spans_that_leave_tokens_without_a_version_are_refused() -> None:
    driver = _driver("wait")
    lease = driver.leased().lease
    for spans in (((1, version(0)),), ((0, version(0)), (3, version(0)), (2, version(0)))):
        header = rollout_header(group_id=lease.group_id, attempt=lease.attempt, spans=spans)
        with pytest.raises(RefusedError, match="must start at token 0 and ascend"):
            rollout_rules.submit_rollout(driver.ledger, header, "a")
