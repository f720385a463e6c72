"""A group waits for the log-probabilities of the learner's reference, and never for its rewards."""

from __future__ import annotations

import msgspec
import pytest

from broker import events, reference_rules, verdict_rules
from broker.groups import Phase
from broker.ledger import Ledger
from broker.ledger_state import LedgerState
from broker.snapshots import DEFAULT_PACE, Snapshot, unpack_snapshot
from broker.telemetry import count_events
from broker.wakeups import woken_by
from common.errors import RefusedError
from common.messages import LeaseRollouts, RolloutLease
from common.metrics import Metrics
from common.types import ReferenceHeader, Verdict, VerdictStatus, WeightVersion
from tests.builders import version
from tests.unit.broker.ledger_driver import GRADED, Driver

OLD, NEW = version(0), version(4)
NUM_TOKENS = 5


class ReferenceDriver(Driver):
    """A ledger whose verifiers compute the reference; every verdict says what it brings."""

    def __init__(self) -> None:
        super().__init__(has_verifier_reference=True)

    def set(self, at: WeightVersion) -> None:
        self.do(reference_rules.set_reference(self.ledger, at))

    def answer(
        self, lease: RolloutLease, at: WeightVersion | None, verdict: Verdict = GRADED
    ) -> str:
        header = None
        if at is not None:
            header = ReferenceHeader(reference_version=at, num_tokens=NUM_TOKENS)
        rollout_id, attempt = lease.rollout.rollout_id, lease.verify_attempt
        return self.do(
            verdict_rules.submit_verdict(self.ledger, rollout_id, attempt, verdict, header)
        )

    def judged(self, at: WeightVersion) -> int:
        """A group whose verdicts came with log-probabilities of ``at``."""
        leased = self.generated()
        while (rollout := self.lease_rollout()) is not None:
            self.answer(rollout, at)
        return leased

    def generated(self) -> int:
        leased = self.leased()
        for index in leased.lease.indices:
            self.submit(leased, index)
        return leased.lease.group_id

    def rewards(self, group_id: int) -> list[float | None]:
        verdicts = [item.verdict for item in self.ledger.groups[group_id].indices]
        return [None if verdict is None else verdict.reward for verdict in verdicts]

    def must_lease(self) -> RolloutLease:
        lease = self.lease_rollout()
        assert lease is not None
        return lease


@pytest.fixture
def driver() -> ReferenceDriver:
    driver = ReferenceDriver()
    driver.set(OLD)
    return driver


def test_a_lease_says_which_reference_is_wanted(driver: ReferenceDriver) -> None:
    driver.generated()
    lease = driver.must_lease()
    assert (lease.reference_version, lease.verdict) == (OLD, None)


def test_without_a_reference_a_lease_asks_for_none_and_a_verdict_is_enough() -> None:
    driver = Driver()
    group_id = driver.verified()
    assert driver.pull(0) == [group_id]
    assert driver.ledger.groups[group_id].references == {}


def test_a_group_goes_to_the_learner_with_the_reference_of_each_rollout(
    driver: ReferenceDriver,
) -> None:
    group_id = driver.judged(OLD)
    assert driver.pull(0) == [group_id]
    group = driver.ledger.groups[group_id].verified_group()
    assert [item.reference_version for item in group.rollouts] == [OLD, OLD]


def test_after_a_reset_only_the_reference_pass_is_leased_again(driver: ReferenceDriver) -> None:
    group_id = driver.judged(OLD)
    driver.set(NEW)
    assert driver.pull(0) == []
    for _ in range(2):
        lease = driver.must_lease()
        assert (lease.reference_version, lease.verdict) == (NEW, GRADED)
        assert driver.answer(lease, NEW) == "accepted"
    assert driver.lease_rollout() is None
    assert driver.rewards(group_id) == [1.0, 1.0]
    assert driver.pull(0) == [group_id]


def test_the_verdict_that_a_reference_pass_echoes_cannot_change_the_first(
    driver: ReferenceDriver,
) -> None:
    group_id = driver.judged(OLD)
    driver.set(NEW)
    other = Verdict(status=VerdictStatus.GRADED, reward=0.25)
    poison = Verdict(status=VerdictStatus.BAD_INPUT, reward=None, reason="no gold")
    for verdict in (other, poison):
        assert driver.answer(driver.must_lease(), NEW, verdict) == "duplicate"
    assert driver.rewards(group_id) == [1.0, 1.0]
    assert driver.pull(0) == [group_id], "the references are kept"


OTHER = Verdict(status=VerdictStatus.GRADED, reward=0.25)


def judged_while_another_holds_it(driver: ReferenceDriver) -> RolloutLease:
    """The first lease on a rollout expires, its late verdict stands; returns the second lease."""
    driver.generated()
    first = driver.must_lease()
    attempt = first.verify_attempt
    driver.do(verdict_rules.release_rollout(driver.ledger, 0, 0, attempt, lost=True))
    second = driver.must_lease()
    assert second.rollout == first.rollout
    driver.set(NEW)
    assert driver.answer(first, OLD) == "accepted"
    return second


def test_a_second_judgement_brings_its_reference_and_is_told_that_it_does_not_stand(
    driver: ReferenceDriver,
) -> None:
    second = judged_while_another_holds_it(driver)
    for _ in range(2):  # sent again it is answered as it was
        assert driver.answer(second, NEW, OTHER) == "duplicate"
        assert driver.rewards(0) == [1.0, None]
        assert driver.ledger.groups[0].references == {0: NEW}


def test_a_second_judgement_that_brings_nothing_of_use_is_late(driver: ReferenceDriver) -> None:
    second = judged_while_another_holds_it(driver)
    for brought in (OLD, None):
        assert driver.answer(second, brought, OTHER) == "late"
    assert driver.must_lease().verdict == GRADED


def test_another_judgement_without_its_reference_ends_the_lease_and_is_not_accepted(
    driver: ReferenceDriver,
) -> None:
    driver.judged(OLD)
    driver.set(NEW)
    lease = driver.must_lease()
    assert driver.answer(lease, None, OTHER) == "duplicate"
    again = driver.must_lease()
    assert (again.rollout, again.verdict) == (lease.rollout, GRADED)


def test_a_pass_that_fails_is_accepted_beside_a_verdict_as_the_error_it_is(
    driver: ReferenceDriver,
) -> None:
    driver.judged(OLD)
    driver.set(NEW)
    failed = Verdict(status=VerdictStatus.INFRA_ERROR, reward=None, reason="child died")
    assert driver.answer(driver.must_lease(), None, failed) == "accepted"
    assert driver.rewards(0) == [1.0, 1.0]


def test_a_verdict_with_the_reference_of_before_the_reset_keeps_its_reward(
    driver: ReferenceDriver,
) -> None:
    group_id = driver.generated()
    first, second = driver.must_lease(), driver.must_lease()
    driver.set(NEW)
    assert driver.answer(first, OLD) == "accepted"
    assert driver.answer(second, NEW) == "accepted"
    assert driver.ledger.groups[group_id].references == {1: NEW}
    assert driver.pull(0) == []
    again = driver.must_lease()
    assert (again.rollout, again.verdict) == (first.rollout, GRADED)
    driver.answer(again, NEW)
    assert driver.pull(0) == [group_id]


def test_a_verdict_without_the_wanted_reference_wakes_verifiers(driver: ReferenceDriver) -> None:
    driver.generated()
    lease = driver.must_lease()
    num_before = len(driver.history)
    driver.answer(lease, None)
    happened = driver.history[num_before:]
    assert LeaseRollouts in woken_by(happened)
    assert driver.ledger.groups[0].indices[0].phase is Phase.GENERATED


def test_a_repeated_submission_is_answered_as_it_was_the_first_time(
    driver: ReferenceDriver,
) -> None:
    driver.generated()
    lease = driver.must_lease()
    driver.set(NEW)
    assert driver.answer(lease, OLD) == "accepted"
    num_events = len(driver.history)
    assert driver.answer(lease, OLD) == "accepted"
    assert len(driver.history) == num_events
    again = driver.must_lease()
    while again.verdict is None:
        driver.answer(again, NEW)
        again = driver.must_lease()
    assert driver.answer(again, NEW) == "accepted"
    num_events = len(driver.history)
    assert driver.answer(again, NEW) == "accepted"
    assert len(driver.history) == num_events


def test_a_pass_that_brings_nothing_is_an_error_that_ends_in_the_dead_letter(
    driver: ReferenceDriver,
) -> None:
    driver.judged(OLD)
    driver.set(NEW)
    for _ in range(driver.rules.max_attempts):
        assert driver.answer(driver.must_lease(), None) == "accepted"
    assert driver.ledger.counts.dead_lettered == 1
    (letter,) = [event for event in driver.history if isinstance(event, events.DeadLettered)]
    assert "gave no log-probabilities" in letter.errors[-1]


def test_a_pass_of_the_reference_before_is_no_error(driver: ReferenceDriver) -> None:
    driver.judged(OLD)
    driver.set(NEW)
    for step in range(5, 15):
        lease = driver.must_lease()
        driver.set(version(step))
        assert driver.answer(lease, lease.reference_version) == "accepted"
    assert driver.ledger.counts.dead_lettered == 0
    assert driver.must_lease().verdict == GRADED


def test_a_lost_reference_pass_goes_to_another_verifier_with_its_verdict(
    driver: ReferenceDriver,
) -> None:
    driver.judged(OLD)
    driver.set(NEW)
    lease = driver.must_lease()
    rollout_id = lease.rollout.rollout_id
    driver.do(
        verdict_rules.release_rollout(
            driver.ledger, rollout_id.group_id, rollout_id.index, lease.verify_attempt, lost=True
        )
    )
    again = driver.must_lease()
    assert (again.rollout, again.verdict) == (lease.rollout, GRADED)


def test_log_probabilities_of_another_length_are_refused(driver: ReferenceDriver) -> None:
    driver.generated()
    lease = driver.must_lease()
    header = ReferenceHeader(reference_version=OLD, num_tokens=NUM_TOKENS - 1)
    with pytest.raises(RefusedError, match="4 reference log-probabilities came for 5"):
        verdict_rules.submit_verdict(
            driver.ledger, lease.rollout.rollout_id, lease.verify_attempt, GRADED, header
        )


def test_a_group_that_the_consumer_holds_keeps_the_reference_it_was_taken_with(
    driver: ReferenceDriver,
) -> None:
    group_ids = [driver.judged(OLD), driver.judged(OLD)]
    assert driver.pull(0) == group_ids
    driver.commit(0, group_ids)
    driver.set(NEW)
    for group_id in group_ids:
        group = driver.ledger.groups[group_id].verified_group()
        assert {item.reference_version for item in group.rollouts} == {OLD}
    assert driver.lease_rollout() is None


def test_groups_whose_delivery_was_lost_before_a_reset_do_not_come_with_the_old_reference(
    driver: ReferenceDriver,
) -> None:
    group_id = driver.judged(OLD)
    assert driver.pull(0) == [group_id]
    driver.set(NEW)
    assert driver.pull(0, held=()) == []
    while (lease := driver.lease_rollout()) is not None:
        driver.answer(lease, NEW)
    assert driver.pull(0, held=()) == [group_id]


def test_a_resumed_learner_replays_steps_from_before_the_reset(driver: ReferenceDriver) -> None:
    group_ids = [driver.judged(OLD), driver.judged(OLD)]
    driver.pull(0)
    driver.commit(0, group_ids)
    driver.set(NEW)
    for _ in range(2):  # resuming twice finds the same
        driver.resume(0, [group_ids])
        assert driver.lease_rollout() is None
        assert all(driver.ledger.groups[group_id].is_verified for group_id in group_ids)
        groups = [driver.ledger.groups[group_id].verified_group() for group_id in group_ids]
        assert {item.reference_version for g in groups for item in g.rollouts} == {OLD}


def test_groups_of_a_lost_branch_are_computed_again_under_the_reference_of_now(
    driver: ReferenceDriver,
) -> None:
    group_ids = [driver.judged(OLD), driver.judged(OLD)]
    driver.pull(0)
    driver.commit(0, group_ids)
    driver.set(NEW)
    driver.resume(0, incarnation=1, forked=True)
    assert driver.must_lease().reference_version == NEW
    driver.set(OLD)
    driver.announce(version(0, 1))
    assert driver.pull(0) == group_ids[1:], "the first is being computed under another reference"


def test_passes_that_are_done_again_after_a_reset_are_counted(driver: ReferenceDriver) -> None:
    metrics = Metrics()
    driver.judged(OLD)
    num_before = len(driver.history)
    driver.set(NEW)
    while (lease := driver.lease_rollout()) is not None:
        driver.answer(lease, NEW)
    driver.judged(NEW)
    count_events(metrics, driver.history[num_before:])
    name = "headrace_reference_passes_repeated_total"
    assert metrics.registry.get_sample_value(name) == driver.rules.group_size


def test_telling_the_same_reference_again_changes_nothing(driver: ReferenceDriver) -> None:
    driver.judged(OLD)
    num_events = len(driver.history)
    driver.set(OLD)
    assert len(driver.history) == num_events


def test_a_broker_without_the_setting_refuses_a_reference_and_forgets_a_former_one(
    driver: ReferenceDriver,
) -> None:
    driver.judged(OLD)
    driver.set(NEW)
    plain = Driver()
    with pytest.raises(RefusedError, match="from one configuration"):
        reference_rules.set_reference(plain.ledger, NEW)
    other = Ledger.replay(plain.rules, None, driver.history)
    assert not other.index.verified
    for event in reference_rules.drop_unused(other).events:
        other.apply(event)
    assert list(other.index.verified) == [0]
    assert other.state.reference is None


def test_history_and_snapshot_rebuild_the_same_references(driver: ReferenceDriver) -> None:
    driver.judged(OLD)
    driver.generated()
    driver.set(NEW)
    driver.answer(driver.must_lease(), NEW)
    encode = msgspec.msgpack.encode
    replayed = Ledger.replay(driver.rules, None, driver.history)
    assert encode(replayed.state) == encode(driver.ledger.state)
    snapshot = Snapshot(len(driver.history), driver.ledger.state)
    before: LedgerState = msgspec.msgpack.decode(encode(driver.ledger.state), type=LedgerState)
    parts = [snapshot.next_part(DEFAULT_PACE)]
    for event in reference_rules.set_reference(driver.ledger, version(5)).events:
        snapshot.keep(event)
        driver.ledger.apply(event)
    while not snapshot.is_done:
        parts.append(snapshot.next_part(DEFAULT_PACE))
    _, state = unpack_snapshot(parts)
    assert encode(state) == encode(before)
