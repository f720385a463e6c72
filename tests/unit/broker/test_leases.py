"""Who holds what, and when it is taken away."""

from __future__ import annotations

from broker import step_rules
from broker.leases import Held, LeaseTable, Work
from common.messages import Lease
from common.types import EvictReason
from tests.unit.broker.ledger_driver import Driver

LEASE = Lease(group_id=4, indices=(0, 1, 2), attempt=9)
HELD = Held("actor-0", LEASE, Work.GENERATE)


def _table() -> LeaseTable:
    table = LeaseTable(lease_s=15.0)
    table.grant(HELD, now_s=100.0)
    return table


def test_a_lease_that_no_heartbeat_names_expires_after_the_lease_time() -> None:
    table = _table()
    assert table.take_expired(114.9) == []
    assert table.take_expired(115.0) == [HELD]
    assert table.take_expired(200.0) == []


def test_a_heartbeat_renews_exactly_the_leases_that_it_names() -> None:
    table = _table()
    other = Held("actor-0", Lease(group_id=5, indices=(0,), attempt=10), Work.GENERATE)
    table.grant(other, now_s=100.0)
    assert table.renew("actor-0", [LEASE], now_s=110.0) == ()
    assert table.take_expired(116.0) == [other]
    assert table.take_expired(125.0) == [HELD]


def test_a_heartbeat_learns_which_parts_are_no_longer_its_own() -> None:
    table = _table()
    table.finish(9, 1)
    assert table.renew("actor-0", [LEASE], 101.0) == (Lease(group_id=4, indices=(1,), attempt=9),)
    assert table.renew("actor-1", [LEASE], 101.0) == (LEASE,)
    never = Lease(group_id=4, indices=(0,), attempt=77)
    assert table.renew("actor-0", [never], 101.0) == (never,)


def test_somebody_elses_heartbeat_does_not_renew_a_lease() -> None:
    table = _table()
    table.renew("actor-1", [LEASE], now_s=114.0)
    assert table.take_expired(115.0) == [HELD]


def test_a_lease_ends_with_its_last_index() -> None:
    table = _table()
    for index in (2, 0):
        table.finish(9, index)
    assert table.get(9) == Held(
        "actor-0", Lease(group_id=4, indices=(1,), attempt=9), Work.GENERATE
    )
    table.finish(9, 1)
    assert table.get(9) is None
    assert len(table) == 0


def test_a_restarted_client_loses_all_its_leases_at_once() -> None:
    table = _table()
    table.grant(Held("actor-1", Lease(group_id=6, indices=(0,), attempt=11), Work.VERIFY), 100.0)
    assert table.take_owned("actor-0") == [HELD]
    assert table.take_owned("actor-0") == []
    assert table.num_by_owner() == {"actor-1": 1}


def test_the_leases_on_a_group_end_with_it_and_no_others() -> None:
    """Those of its samplers and those of its verifiers."""
    driver = Driver()
    ended, other = driver.leased(owner="a"), driver.leased(owner="b")
    driver.submit(ended, 0)
    assert driver.lease_rollout("judge") is not None
    leases = driver.engine.leases
    assert leases.num_by_owner() == {"a": 1, "b": 1, "judge": 1}
    evicted = [ended.lease.group_id]
    driver.do(step_rules.evict_groups(driver.ledger, evicted, EvictReason.STALE))
    assert leases.num_by_owner() == {"b": 1}
    assert leases.renew("a", [ended.lease], 1.0) == (
        Lease(group_id=ended.lease.group_id, indices=(0, 1), attempt=ended.lease.attempt),
    )
    assert leases.renew("b", [other.lease], 1.0) == ()
