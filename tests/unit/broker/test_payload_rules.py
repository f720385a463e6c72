"""Rollouts whose arrays are not with the broker: lost, ended, or both."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from broker import payload_rules, rollout_rules
from broker.groups import Phase, Place
from broker.ledger import Ledger
from common.messages import PromptLease
from common.types import RolloutId
from tests.builders import rollout_header, version
from tests.unit.broker.ledger_driver import Driver


class StoreDriver(Driver):
    """A driver whose rollouts are in stores."""

    def submit_to(self, store: str, lease: PromptLease, index: int) -> RolloutId:
        header = rollout_header(
            group_id=lease.lease.group_id, index=index, attempt=lease.lease.attempt
        )
        header = msgspec.structs.replace(header, store=store)
        assert self.do(rollout_rules.submit_rollout(self.ledger, header, "a")) == "accepted"
        return header.rollout_id

    def sampled(self, *stores: str) -> list[RolloutId]:
        """A new group whose rollouts are in these stores."""
        lease = self.leased()
        return [self.submit_to(store, lease, index) for index, store in enumerate(stores)]

    def verified_in(self, *stores: str) -> list[RolloutId]:
        """The same, verified."""
        rollout_ids = self.sampled(*stores)
        while (rollout := self.lease_rollout()) is not None:
            assert self.judge(rollout) == "accepted"
        return rollout_ids

    def report(self, rollout_ids: Sequence[RolloutId]) -> int:
        return self.do(payload_rules.report_lost(self.ledger, rollout_ids))

    def phases(self, group_id: int) -> list[Phase]:
        return [item.phase for item in self.ledger.groups[group_id].indices]


def test_a_lost_rollout_is_sampled_and_verified_again_and_the_other_one_is_kept() -> None:
    driver = StoreDriver()
    first, second = driver.verified_in("store-0", "store-1")
    assert driver.report([second, second]) == 1
    assert driver.phases(first.group_id) == [Phase.VERIFIED, Phase.WAITING]
    assert driver.pull(0) == []
    again = driver.leased()
    assert (again.lease.group_id, again.lease.indices) == (first.group_id, (1,))
    driver.submit_to("store-0", again, 1)
    rollout = driver.lease_rollout()
    assert rollout is not None
    assert driver.judge(rollout) == "accepted"
    assert driver.pull(0) == [first.group_id]


def test_a_loss_ends_the_lease_of_the_verifier_and_its_verdict_comes_too_late() -> None:
    driver = StoreDriver()
    (rollout_id, _) = driver.sampled("store-0", "store-0")
    leased = driver.lease_rollout()
    assert leased is not None
    assert leased.rollout.rollout_id == rollout_id
    driver.report([rollout_id])
    assert driver.engine.leases.get(leased.verify_attempt) is None
    assert driver.judge(leased) == "late"


def test_a_group_that_was_handed_over_is_taken_back_and_leaves_room_in_the_batch() -> None:
    driver = StoreDriver()
    lost, *_ = driver.verified_in("store-0", "store-0")
    kept, *_ = driver.verified_in("store-0", "store-0")
    assert driver.pull(0) == [lost.group_id, kept.group_id]
    assert driver.report([lost]) == 1
    assert driver.ledger.groups[lost.group_id].place is Place.OPEN
    assert driver.ledger.state.handed_over == [kept.group_id]
    assert driver.ledger.window().holds()
    again = driver.leased()
    driver.submit_to("store-0", again, lost.index)
    rollout = driver.lease_rollout()
    assert rollout is not None
    driver.judge(rollout)
    assert driver.pull(0, held=(kept.group_id,)) == [lost.group_id]
    driver.commit(0, [kept.group_id, lost.group_id])


def test_a_stepped_group_needs_its_arrays_only_after_a_fork() -> None:
    driver = StoreDriver(groups_per_step=1)
    rollout_ids = driver.verified_in("store-0", "store-0")
    group_id = rollout_ids[0].group_id
    assert driver.pull(0, 1) == [group_id]
    driver.commit(0, [group_id])
    assert driver.report(rollout_ids) == 0
    assert driver.ledger.groups[group_id].place is Place.STEPPED
    driver.resume(0, incarnation=1, forked=True)
    assert driver.report(rollout_ids) == 2
    assert driver.phases(group_id) == [Phase.WAITING, Phase.WAITING]


@pytest.mark.parametrize("known", ["repeated", "other attempt", "with the broker", "ended"])
def test_a_report_that_says_nothing_new_changes_nothing(known: str) -> None:
    driver = StoreDriver()
    store = "" if known == "with the broker" else "store-0"
    rollout_id, other = driver.sampled(store, store)
    if known == "repeated":
        driver.report([rollout_id])
    if known == "other attempt":
        rollout_id = msgspec.structs.replace(rollout_id, attempt=99)
    if known == "ended":
        rollout_id = msgspec.structs.replace(other, group_id=4711)
    before = len(driver.history)
    assert driver.report([rollout_id, rollout_id]) == 0
    assert len(driver.history) == before


def test_a_rollout_that_is_lost_again_and_again_ends_in_the_dead_letter() -> None:
    driver = StoreDriver(max_attempts=1)
    rollout_ids = driver.sampled("store-0", "store-0")
    group_id = rollout_ids[0].group_id
    for _ in range(rollout_rules.LOST_PER_ERROR):
        assert group_id in driver.ledger.groups
        driver.report(rollout_ids)
        if group_id in driver.ledger.groups:
            lease = driver.leased()
            rollout_ids = [driver.submit_to("store-0", lease, index) for index in range(2)]
    assert driver.ledger.counts.dead_lettered == 1


def test_an_actor_that_starts_again_takes_along_only_what_nobody_may_have_read() -> None:
    driver = StoreDriver()
    handed_over, *_ = driver.verified_in("actor-0", "actor-0")
    assert driver.pull(0, 1) == [handed_over.group_id]
    mixed = driver.verified_in("actor-0", "actor-1")
    assert driver.do(payload_rules.lose_server(driver.ledger, "actor-0")) == 1
    assert driver.phases(mixed[0].group_id) == [Phase.WAITING, Phase.VERIFIED]
    assert driver.phases(handed_over.group_id) == [Phase.VERIFIED, Phase.VERIFIED]


def test_only_groups_that_were_admitted_and_left_have_ended() -> None:
    driver = StoreDriver(groups_per_step=1)
    (first, *_) = driver.verified_in("store-0", "store-0")
    (second, *_) = driver.verified_in("store-0", "store-0")
    driver.pull(0, 1)
    driver.commit(0, [first.group_id])
    ids = (first.group_id, second.group_id, 4711)
    assert payload_rules.ended_groups(driver.ledger, ids) == ()
    assert payload_rules.ended_groups(driver.ledger, ids, stepped=True) == (first.group_id,)
    driver.announce(version(1))
    driver.checkpoint(1)
    assert payload_rules.ended_groups(driver.ledger, ids) == (first.group_id,)


def test_replaying_the_journal_of_a_loss_leads_to_the_same_state() -> None:
    driver = StoreDriver()
    lost = driver.verified_in("store-0", "store-1")
    driver.pull(0, 1)
    driver.report(lost)
    replayed = Ledger.replay(driver.rules, None, driver.history)
    assert replayed.state == driver.ledger.state
