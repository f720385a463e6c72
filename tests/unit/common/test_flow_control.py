"""The server's end of byte credit: one line, nobody overtakes, a full disk stops it."""

from __future__ import annotations

import pytest

from common.credit import ALLOWANCE_BYTES
from common.errors import RefusedError
from common.flow_control import FlowControl
from common.messages import Credit, ReserveBytes

MIB = 1 << 20


class Disk:
    has_room = True

    def __call__(self) -> bool:
        return self.has_room


def told(client: str) -> bool:
    return True


def wish(least: int, most: int = 0, wait_s: float = 10.0) -> ReserveBytes:
    return ReserveBytes(least=least, most=most or least, wait_s=wait_s)


def granted(flow: FlowControl, now_s: float = 0.0) -> dict[str, int]:
    return {item.client: credit.num_bytes for item, credit in flow.answer(now_s)}


def test_a_client_without_credit_is_refused_and_its_bytes_do_not_count() -> None:
    flow = FlowControl(MIB, Disk())
    first = flow.connect("a")
    with pytest.raises(RefusedError, match="without credit") as refused:
        flow.arrive("a", first + 1)
    assert refused.value.code == "no_credit"
    assert flow.settle(told) == {}
    flow.arrive("a", first)
    assert flow.settle(told) == {"a": first}


def test_a_large_wish_is_not_overtaken_by_small_ones() -> None:
    flow = FlowControl(MIB, Disk())
    flow.reserve(wish(MIB // 2), b"x", 1, "x", 0.0)
    assert granted(flow) == {"x": MIB // 2}
    flow.reserve(wish(3 * MIB // 4), b"big", 1, "big", 0.0)
    flow.reserve(wish(10), b"small", 1, "small", 0.0)
    assert granted(flow) == {}
    flow.arrive("x", MIB // 2)
    flow.settle(told)
    assert granted(flow) == {"big": 3 * MIB // 4, "small": 10}


def test_a_full_disk_gives_nobody_anything_until_it_has_room_again() -> None:
    disk = Disk()
    flow = FlowControl(MIB, disk)
    first = flow.connect("a")
    flow.arrive("a", first)
    disk.has_room = False
    assert flow.settle(told) == {}
    flow.reserve(wish(100, wait_s=5.0), b"a", 7, "a", now_s=1.0)
    assert flow.answer(5.9) == []
    ((expired, credit),) = flow.answer(6.0)
    assert (expired.request_id, credit) == (7, Credit(reason="the disk takes no more rollouts"))
    flow.reserve(wish(100), b"a", 8, "a", now_s=6.0)
    disk.has_room = True
    assert granted(flow) == {"a": 100}


def test_allowances_are_not_renewed_past_those_who_wait() -> None:
    flow = FlowControl(MIB, Disk())
    first = flow.connect("a")
    room = MIB - ALLOWANCE_BYTES - 1000
    flow.reserve(wish(3 * room // 4), b"b", 1, "b", 0.0)
    flow.reserve(wish(3 * room // 4), b"c", 1, "c", 0.0)
    assert granted(flow) == {"b": 3 * room // 4}
    flow.arrive("a", first)
    assert flow.settle(told) == {}
    flow.arrive("b", 3 * room // 4)
    flow.settle(told)
    assert granted(flow) == {"c": 3 * room // 4}


def test_a_client_that_is_told_nothing_gets_its_allowance_back_the_next_time() -> None:
    flow = FlowControl(MIB, Disk())
    first = flow.connect("a")
    flow.arrive("a", 1000)
    assert flow.settle(lambda _client: False) == {}
    flow.arrive("a", 10)
    assert flow.settle(told) == {"a": 1010}
    flow.arrive("a", first)


def test_a_wish_larger_than_the_pool_is_refused_with_the_cure() -> None:
    flow = FlowControl(MIB, Disk())
    with pytest.raises(RefusedError, match="raise broker.max_memory_bytes") as refused:
        flow.reserve(wish(MIB), b"a", 1, "a", 0.0)
    assert refused.value.code == "too_large"


def test_a_repeated_wish_keeps_its_place_and_is_answered_once() -> None:
    flow = FlowControl(MIB, Disk())
    for _ in range(3):
        flow.reserve(wish(10), b"a", 1, "a", 0.0)
    assert len(flow.answer(0.0)) == 1
    assert flow.num_waiting == 0


def test_a_client_that_is_gone_waits_no_longer_and_holds_nothing() -> None:
    flow = FlowControl(MIB, Disk())
    flow.connect("a")
    flow.reserve(wish(3 * MIB // 4 - 10), b"x", 1, "x", 0.0)
    assert granted(flow)
    flow.reserve(wish(MIB // 2), b"a", 1, "a", 0.0)
    flow.disconnect("a")
    flow.disconnect("x")
    assert flow.num_waiting == 0
    assert flow.next_deadline_s() == float("inf")
    assert flow.credit.free_bytes == MIB


def test_a_client_that_connects_anew_is_not_settled_for_what_it_sent_before() -> None:
    flow = FlowControl(MIB, Disk())
    first = flow.connect("a")
    flow.arrive("a", first)
    assert flow.connect("a") == first
    assert flow.settle(told) == {}
    assert flow.credit.free_bytes == MIB - first


def test_a_wish_that_is_repeated_after_its_grant_gets_the_same_answer_and_no_second_grant() -> None:
    flow = FlowControl(MIB, Disk())
    flow.connect("a")
    flow.reserve(wish(MIB // 2), b"peer", 7, "a", 0.0)
    ((_, first),) = flow.answer(0.0)
    free = flow.credit.free_bytes
    flow.reserve(wish(MIB // 2), b"peer", 7, "a", 1.0)
    ((repeated, credit),) = flow.answer(1.0)
    assert (repeated.request_id, credit) == (7, first)
    flow.reserve(wish(1000), b"peer", 8, "a", 2.0)
    assert granted(flow, 2.0) == {"a": 1000}
    flow.reserve(wish(MIB // 2), b"peer", 7, "a", 3.0)
    assert granted(flow, 3.0) == {}, "nobody waits for that answer any more"
    assert flow.credit.free_bytes == free - 1000
    flow.connect("a")
    flow.reserve(wish(500), b"other", 1, "a", 4.0)
    assert granted(flow, 4.0) == {"a": 500}, "another connection counts from 1 again"
