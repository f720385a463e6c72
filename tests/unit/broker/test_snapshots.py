"""Snapshots that are taken while the ledger goes on: what they hold, how large a slice is."""

from __future__ import annotations

import msgspec
import pytest

from broker import step_rules
from broker.groups import GroupRecord
from broker.ledger_state import LedgerState
from broker.snapshots import Snapshot, SnapshotPace, unpack_groups, unpack_snapshot
from common.types import EvictReason
from tests.builders import version
from tests.unit.broker.ledger_driver import Driver

ONE_GROUP = SnapshotPace(slice_rollouts=1)


def _driver(num_groups: int = 6) -> Driver:
    driver = Driver(groups_per_step=num_groups, num_steps=8)
    for _ in range(num_groups):
        driver.verified()
    return driver


def _begun(driver: Driver) -> Snapshot:
    driver.engine.snapshot = Snapshot(len(driver.history), driver.ledger.state)
    return driver.engine.snapshot


def _rest(snapshot: Snapshot, pace: SnapshotPace = ONE_GROUP) -> list[bytes]:
    parts = []
    while not snapshot.is_done:
        parts.append(snapshot.next_part(pace))
    return parts


def _frozen(state: LedgerState) -> LedgerState:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=LedgerState)


def _train_all(driver: Driver) -> None:
    driver.commit(0, driver.pull(0, 6))
    driver.announce(version(1))
    driver.checkpoint(1)


def _put_back(driver: Driver) -> None:
    driver.pull(0, 6)
    driver.resume(0)


def _fork(driver: Driver) -> None:
    driver.commit(0, driver.pull(0, 6))
    driver.resume(0, incarnation=1, forked=True)


def _evict(driver: Driver) -> None:
    driver.do(step_rules.evict_groups(driver.ledger, [0, 3, 5], EvictReason.STALE))


def _end(driver: Driver) -> None:
    driver.do(step_rules.end_run(driver.ledger))


@pytest.mark.parametrize("num_taken", [1, 3, 6])
@pytest.mark.parametrize("change", [_train_all, _put_back, _fork, _evict, _end])
def test_a_snapshot_is_the_state_at_its_beginning_whatever_happens_until_its_end(
    change: object, num_taken: int
) -> None:
    assert callable(change)
    driver = _driver()
    before, number = _frozen(driver.ledger.state), len(driver.history)
    snapshot = _begun(driver)
    parts = [snapshot.next_part(ONE_GROUP) for _ in range(num_taken)]
    change(driver)
    parts += _rest(snapshot)
    assert unpack_snapshot(parts) == (number, before)
    assert len(driver.history) > number
    assert len(parts) == 7


def test_what_is_admitted_after_the_beginning_is_not_in_it() -> None:
    driver = _driver()
    snapshot = _begun(driver)
    lease = driver.leased(version(1))
    number, state = unpack_snapshot(_rest(snapshot))
    assert lease.lease.group_id not in state.groups
    assert (number, state.next_group_id, len(state.groups)) == (len(driver.history) - 3, 6, 6)


def test_a_ledger_without_groups_is_a_snapshot_of_one_part() -> None:
    snapshot = Snapshot(0, LedgerState())
    assert unpack_snapshot(_rest(snapshot)) == (0, LedgerState())
    (only,) = _rest(Snapshot(7, LedgerState(num_trained=3)))
    assert unpack_snapshot([only]) == (7, LedgerState(num_trained=3))


def test_a_slice_ends_with_the_group_that_fills_it_in_rollouts_or_in_bytes() -> None:
    driver = _driver(12)  # of two rollouts each
    by_rollouts = _rest(_begun(driver), SnapshotPace(slice_rollouts=5))[1:]
    assert [len(unpack_groups(part)) for part in by_rollouts] == [3, 3, 3, 3]
    longest = max(len(msgspec.msgpack.encode(group)) for group in driver.ledger.groups.values())
    by_bytes = _rest(_begun(driver), SnapshotPace(slice_bytes=longest + 1))[1:]
    assert [len(unpack_groups(part)) for part in by_bytes] == [2] * 6


def test_the_groups_of_a_part_are_bytes_that_any_reader_of_msgpack_understands() -> None:
    driver = _driver()
    (part,) = _rest(_begun(driver), SnapshotPace())[1:]
    groups = msgspec.msgpack.decode(part, type=list[GroupRecord])
    assert groups == list(driver.ledger.groups.values())


def test_snapshots_are_as_far_apart_as_the_state_is_large() -> None:
    pace = SnapshotPace(min_events=40, events_per_rollout=2.0)
    driver = _driver()
    assert pace.interval(LedgerState()) == 40
    assert pace.interval(driver.ledger.state) == 40
    assert pace.interval(_driver(30).ledger.state) == 2.0 * 30 * 2
