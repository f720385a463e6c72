"""Byte credit: the pool is never overdrawn and never leaks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.credit import ALLOWANCE_BYTES, ByteCredit

MIB = 1 << 20


def test_a_client_starts_with_an_allowance_and_may_send_exactly_so_much() -> None:
    credit = ByteCredit(MIB)
    first = credit.open("actor-0")
    assert first == ALLOWANCE_BYTES
    assert not credit.spend("actor-0", first + 1)
    assert credit.spend("actor-0", first)
    assert not credit.spend("actor-0", 1)


def test_an_acknowledgement_gives_the_allowance_back_and_nothing_beyond_it() -> None:
    credit = ByteCredit(MIB)
    credit.open("actor-0")
    assert credit.reserve("actor-0", 500_000, 500_000) == 500_000
    assert credit.spend("actor-0", 500_000)
    assert credit.settle("actor-0", 500_000, renew=True) == 0
    assert credit.spend("actor-0", 1000)
    assert credit.settle("actor-0", 1000, renew=True) == 1000
    assert credit.free_bytes == MIB - ALLOWANCE_BYTES


def test_while_the_journal_takes_nothing_no_credit_comes_back() -> None:
    credit = ByteCredit(MIB)
    credit.open("actor-0")
    assert credit.spend("actor-0", 1000)
    assert credit.settle("actor-0", 1000, renew=False) == 0
    assert credit.free_bytes == MIB - ALLOWANCE_BYTES + 1000


def test_a_reservation_waits_until_there_is_room() -> None:
    credit = ByteCredit(MIB)
    assert credit.open("a") == ALLOWANCE_BYTES
    room = MIB - ALLOWANCE_BYTES
    assert credit.reserve("a", room, room) == room
    assert credit.reserve("b", 1, MIB) == 0
    assert credit.spend("a", MIB // 2)
    credit.settle("a", MIB // 2, renew=True)
    assert credit.reserve("b", MIB // 2, MIB // 2) == MIB // 2


def test_a_reservation_ahead_leaves_room_for_others() -> None:
    credit = ByteCredit(MIB)
    assert credit.reserve("a", 1000, MIB) == MIB // 8
    assert credit.reserve("b", MIB // 2, MIB) == MIB // 2


def test_allowances_leave_room_for_reservations_however_many_clients_there_are() -> None:
    credit = ByteCredit(16 * MIB)
    granted = [credit.open(f"actor-{n}") for n in range(1000)]
    assert sum(granted) <= 4 * MIB
    assert granted[-1] == 0
    assert credit.may_ever_hold(12 * MIB)
    assert credit.reserve("actor-999", 12 * MIB, 12 * MIB) == 12 * MIB


def test_a_client_that_connects_anew_or_is_gone_holds_nothing() -> None:
    credit = ByteCredit(MIB)
    credit.open("a")
    assert credit.reserve("a", 100_000, 100_000) == 100_000
    assert credit.spend("a", 90_000)
    credit.open("a")
    assert credit.free_bytes == MIB - ALLOWANCE_BYTES
    assert credit.in_use_bytes == 0
    credit.close("a")
    assert credit.free_bytes == MIB
    assert credit.settle("a", 90_000, renew=True) == 0


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "close", "reserve", "spend", "settle", "settle_only"]),
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 300_000),
    ),
    max_size=60,
)


@given(_STEPS)
def test_what_is_granted_and_in_use_never_exceeds_the_pool(
    steps: list[tuple[str, str, int]],
) -> None:
    credit = ByteCredit(MIB)
    granted: dict[str, int] = {}
    in_use: dict[str, int] = {}
    for what, client, num_bytes in steps:
        if what == "open":
            granted[client], in_use[client] = credit.open(client), 0
        elif what == "close":
            credit.close(client)
            granted.pop(client, None)
            in_use.pop(client, None)
        elif what == "reserve" and client in granted:
            got = credit.reserve(client, num_bytes, 2 * num_bytes)
            assert got == 0 or got >= num_bytes
            granted[client] += got
        elif what == "spend" and credit.spend(client, num_bytes):
            granted[client] -= num_bytes
            in_use[client] += num_bytes
        elif what.startswith("settle") and client in granted:
            done = min(num_bytes, in_use[client])
            granted[client] += credit.settle(client, done, renew=what == "settle")
            in_use[client] -= done
        assert min(granted.values(), default=0) >= 0
        assert credit.free_bytes == MIB - sum(granted.values()) - sum(in_use.values())
        assert credit.free_bytes >= 0
        assert credit.in_use_bytes == sum(in_use.values())
