"""Work that failed goes to somebody else, and what cannot be completed says why."""

from __future__ import annotations

import dataclasses

from broker import rollout_rules, verdict_rules
from broker.dead_letters import MAX_ERROR, MAX_ERRORS, cap_error, dead_letter_of
from broker.engine import Engine
from broker.events import DeadLettered
from broker.group_clock import GroupClock
from broker.groups import GroupRecord
from broker.leases import LeaseTable
from broker.length_tally import LengthTally, length_label
from broker.peers import Peers
from broker.telemetry import count_lengths
from common import messages
from common.messages import GroupCounts
from common.metrics import Metrics
from common.types import Role, Verdict, VerdictStatus
from tests.builders import prompt, rollout_header, version
from tests.unit.broker.ledger_driver import Driver
from tests.unit.broker.test_handlers import Desk

INFRA = Verdict(status=VerdictStatus.INFRA_ERROR, reward=None, reason="child died")
BOTH = ("verifier-0", "verifier-1")


def _generated(driver: Driver) -> None:
    lease = driver.leased()
    for index in lease.lease.indices:
        driver.submit(lease, index)


def _verify(driver: Driver, owner: str, peers: tuple[str, ...]) -> int | None:
    """Lease a rollout as ``owner`` and fail at it; the index, or None without work."""
    lease = driver.do(verdict_rules.lease_rollout(driver.ledger, owner, peers))
    if lease is None:
        return None
    driver.judge(lease, INFRA)
    return lease.rollout.rollout_id.index


def test_a_verifier_that_failed_is_passed_over_while_another_one_asks() -> None:
    driver = Driver(group_size=1)
    _generated(driver)
    assert _verify(driver, "verifier-0", BOTH) == 0
    assert _verify(driver, "verifier-0", BOTH) is None
    assert _verify(driver, "verifier-1", BOTH) == 0
    assert _verify(driver, "verifier-0", BOTH) == 0, "when all have failed any may try again"


def test_a_verifier_alone_gets_its_failed_work_again() -> None:
    driver = Driver(group_size=1)
    _generated(driver)
    assert _verify(driver, "verifier-0", BOTH) == 0
    assert _verify(driver, "verifier-0", ("verifier-0",)) == 0


def test_a_verifier_that_failed_at_one_answer_gets_the_others() -> None:
    driver = Driver(group_size=2)
    _generated(driver)
    assert _verify(driver, "verifier-0", BOTH) == 0
    assert _verify(driver, "verifier-0", BOTH) == 1
    assert _verify(driver, "verifier-0", BOTH) is None


def test_a_lost_verification_goes_to_another_verifier_too() -> None:
    driver = Driver(group_size=1)
    _generated(driver)
    lease = driver.lease_rollout("verifier-0")
    assert lease is not None
    driver.do(verdict_rules.release_rollout(driver.ledger, 0, 0, lease.verify_attempt, lost=True))
    assert _verify(driver, "verifier-0", BOTH) is None
    assert _verify(driver, "verifier-1", BOTH) == 0


def test_an_actor_that_failed_samples_another_group_instead() -> None:
    driver = Driver()
    failed = driver.leased(owner="actor-0")
    release = rollout_rules.release_prompt(driver.ledger, failed.lease, error="out of memory")
    driver.do(release)
    actors = ("actor-0", "actor-1")
    for owner, expected in (("actor-0", 1), ("actor-1", 0)):
        lease = driver.do(
            rollout_rules.lease_prompt(driver.ledger, owner, version(0), driver.source, actors)
        )
        assert lease is not None
        assert lease.lease.group_id == expected


def test_work_that_was_handed_back_without_an_error_bars_nobody() -> None:
    driver = Driver()
    lease = driver.leased(owner="actor-0")
    driver.do(rollout_rules.release_prompt(driver.ledger, lease.lease))
    again = driver.do(
        rollout_rules.lease_prompt(
            driver.ledger, "actor-0", version(0), driver.source, ("actor-0", "actor-1")
        )
    )
    assert again is not None
    assert again.lease.group_id == 0


def test_only_actors_with_the_newest_weights_are_peers() -> None:
    peers = Peers()
    for name, serving in (("old", 1), ("new", 2), ("newer", 2), ("old", 1)):
        peers.note(name, version(serving))
    assert set(peers.names) == {"new", "newer"}
    peers.discard("new")
    peers.note("old", version(3))
    assert set(peers.names) == {"old"}


def test_a_dead_letter_keeps_every_error_with_its_owner() -> None:
    driver = Driver(group_size=2, max_attempts=3)
    _generated(driver)
    for number in range(3):
        lease = driver.lease_rollout(f"verifier-{number}")
        assert lease is not None
        told = Verdict(status=VerdictStatus.INFRA_ERROR, reward=None, reason=f"e{number}" * 2000)
        driver.judge(lease, told)
    (letter,) = (event for event in driver.history if isinstance(event, DeadLettered))
    assert letter.reason == "it ended in an error 3 times and was lost 0 times"
    assert len(letter.errors) == 3
    for number, error in enumerate(letter.errors):
        assert error.startswith(f"index 0, verifier-{number}: e{number}")
        assert error.endswith(f"[{4000 - MAX_ERROR} more characters]")
        assert len(error) <= 4096


def test_an_error_is_cut_only_where_it_is_too_long_and_says_by_how_much() -> None:
    assert cap_error("x" * MAX_ERROR) == "x" * MAX_ERROR
    assert cap_error("x" * (MAX_ERROR + 7)) == "x" * MAX_ERROR + " [7 more characters]"


def test_of_very_many_errors_the_first_are_kept_and_the_rest_counted() -> None:
    group = GroupRecord(0, prompt(), [], errors=tuple(f"e{n}" for n in range(MAX_ERRORS + 3)))
    letter = dead_letter_of(group, "reason", ["last"])
    assert letter.errors[:2] == ("e0", "e1")
    assert letter.errors[MAX_ERRORS:] == ("4 more errors",)


def test_a_group_is_overdue_from_its_first_lease_on() -> None:
    clock = GroupClock()
    clock.start(0, 1.0)
    clock.start(1, 2.0)
    clock.start(0, 5.0)
    assert clock.take_overdue(10.9, 10.0) == []
    assert clock.take_overdue(11.0, 10.0) == [0]
    clock.stop([1])
    assert clock.take_overdue(99.0, 10.0) == []
    assert len(clock) == 0


def test_a_group_that_takes_too_long_is_dead_lettered_and_a_verified_one_is_not() -> None:
    driver = Driver(group_size=1)
    slow = driver.leased().lease.group_id
    done = driver.verified()
    for group_id in (slow, done, 99):
        driver.do(rollout_rules.give_up(driver.ledger, group_id, 60.0))
    assert driver.ledger.counts == GroupCounts(admitted=2, dead_lettered=1, pending=1)
    (letter,) = (event for event in driver.history if isinstance(event, DeadLettered))
    assert "broker.max_group_s (60 s)" in letter.reason


def test_resampled_answers_are_told_apart_from_first_ones() -> None:
    driver = Driver(group_size=2)
    first = driver.leased()
    driver.submit(first, 0)
    driver.do(rollout_rules.release_prompt(driver.ledger, first.lease, lost=True))
    again = driver.leased()
    header = rollout_header(index=1, attempt=again.lease.attempt, num_completion=9)
    driver.do(rollout_rules.submit_rollout(driver.ledger, header, "a"))
    tally: LengthTally = driver.engine.lengths
    assert tally.first == {5: 1}
    assert tally.resampled == {9: 1}


def test_lengths_fall_into_buckets_up_to_their_label() -> None:
    assert [length_label(n) for n in (0, 64, 65, 16384, 16385)] == [
        "64",
        "64",
        "256",
        "16384",
        "inf",
    ]


def test_masked_tokens_are_counted_by_the_length_of_their_answer() -> None:
    driver = Driver(staleness="mask_tokens", group_size=1, groups_per_step=1)
    slow = driver.leased(version(0))
    for step in range(2):
        driver.verified(version(step))
        driver.commit(step, driver.pull(step, 1))
    driver.announce(version(2))
    driver.engine.lengths.clear()
    header = rollout_header(
        group_id=slow.lease.group_id,
        attempt=slow.lease.attempt,
        num_completion=100,
        spans=((0, version(0)), (30, version(2))),
    )
    driver.do(rollout_rules.submit_rollout(driver.ledger, header, "a"))
    driver.do(verdict_rules.lease_rollout(driver.ledger, "verifier-0"))
    rollout = driver.ledger.groups[slow.lease.group_id].indices[0]
    driver.do(
        verdict_rules.submit_verdict(
            driver.ledger,
            header.rollout_id,
            rollout.verify_attempt,
            Verdict(status=VerdictStatus.GRADED, reward=1.0),
        )
    )
    assert driver.pull(2, 1) == [slow.lease.group_id]
    assert driver.engine.lengths.handed_over == {"256": 100}
    assert driver.engine.lengths.masked == {"256": 30}


def _fail_as(desk: Desk, client: str) -> bool:
    """Ask for a rollout as ``client`` and fail at it; whether there was one."""
    request = messages.LeaseRollouts(max_rollouts=1, wait_s=1.0)
    answer = desk.ask(client, request)
    if answer is None:
        return False
    assert isinstance(answer.message, messages.RolloutLeases)
    (lease,) = answer.message.leases
    verdict = messages.SubmitVerdict(
        rollout_id=lease.rollout.rollout_id, verify_attempt=lease.verify_attempt, verdict=INFRA
    )
    desk.reply(client, verdict, messages.Ack)
    return True


def test_the_broker_knows_from_requests_who_else_could_do_the_work() -> None:
    desk = Desk()
    for name in ("verifier", "verifier-1"):
        desk.register(Role.VERIFIER, name)
    desk.submit(desk.lease().leases[0])
    assert _fail_as(desk, "verifier")
    assert _fail_as(desk, "verifier"), "the other one has not asked for work yet"
    assert _fail_as(desk, "verifier-1")


def test_a_verifier_that_vanished_is_no_reason_to_wait() -> None:
    desk = Desk()
    for name in ("verifier", "verifier-1"):
        desk.register(Role.VERIFIER, name)
        assert not _fail_as(desk, name)
    desk.submit(desk.lease().leases[0])
    assert _fail_as(desk, "verifier")
    assert not _fail_as(desk, "verifier")
    desk.now_s = 8.0
    desk.ask("verifier", messages.Heartbeat())
    desk.now_s = 11.0
    assert "verifier-1" in desk.handlers.sweep(desk.now_s)
    assert _fail_as(desk, "verifier")


def test_the_sweep_gives_up_groups_over_max_group_s_and_a_restart_starts_their_clock_anew() -> None:
    desk = Desk()
    ledger = desk.engine.ledger
    ledger.rules = dataclasses.replace(ledger.rules, max_group_s=5.0)
    desk.lease()
    desk.now_s = 4.0
    restarted = Engine(ledger, LeaseTable(10.0), desk.engine.payloads, desk.now_s)
    desk.now_s = 5.0
    assert restarted.ages.take_overdue(8.9, 5.0) == []
    assert restarted.ages.take_overdue(9.0, 5.0) == [0]
    desk.handlers.sweep(4.9)
    assert ledger.counts.dead_lettered == 0
    desk.handlers.sweep(desk.now_s)
    assert ledger.counts.dead_lettered == 1
    assert len(desk.engine.leases) == 0, "the actor is told at its next heartbeat"


def test_lengths_are_exported_once() -> None:
    tally, metrics = LengthTally(), Metrics()
    tally.resampled[9] = 2
    tally.first[300] = 1
    tally.handed_over["64"], tally.masked["64"] = 40, 10
    for _ in range(2):
        count_lengths(metrics, tally)
    value = metrics.registry.get_sample_value
    assert value("headrace_rollouts_resampled_total") == 2
    assert value("headrace_tokens_handed_over_total", {"length": "64"}) == 40
    assert value("headrace_tokens_masked_total", {"length": "64"}) == 10
    for sampling, count, total in (("first", 1, 300), ("resampled", 2, 18)):
        labels = {"sampling": sampling}
        assert value("headrace_answer_length_tokens_count", labels) == count
        assert value("headrace_answer_length_tokens_sum", labels) == total
