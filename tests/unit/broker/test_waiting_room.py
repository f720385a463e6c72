"""Requests that are held: who waits for how long, and who is asked first."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from broker.groups import MAX_FAILED_BY
from broker.waiting_room import Parked, WaitingRoom
from broker.wakeups import ALL_KINDS
from common.messages import LeasePrompts, LeaseRollouts, Request
from tests.builders import version


def _parked(
    peer: bytes = b"p", request_id: int = 1, until_s: float = 5.0, request: Request | None = None
) -> Parked:
    asked = request or LeaseRollouts(max_rollouts=1, wait_s=5.0)
    return Parked(peer, request_id, f"client-{peer.decode()}", asked, until_s)


def _lease(policy_step: int, max_groups: int = 1) -> LeasePrompts:
    return LeasePrompts(serving=version(policy_step), max_groups=max_groups, wait_s=5.0)


def _peer(number: int) -> bytes:
    return str(number).encode()


class Giver:
    """Gives to the first ``supply`` that ask and are allowed, and remembers who asked."""

    def __init__(self, supply: int, allows: Callable[[Parked], bool] = lambda _: True) -> None:
        self.supply = supply
        self.allows = allows
        self.asked: list[bytes] = []
        self.got: list[bytes] = []

    def __call__(self, parked: Parked) -> bool:
        self.asked.append(parked.peer)
        if not self.supply or not self.allows(parked):
            return False
        self.supply -= 1
        self.got.append(parked.peer)
        return True


def test_requests_leave_when_their_wait_runs_out() -> None:
    room = WaitingRoom()
    room.add(_parked(request_id=1, until_s=5.0))
    room.add(_parked(request_id=2, until_s=6.0))
    assert room.next_deadline_s() == 5.0
    assert [parked.request_id for parked in room.take_expired(5.0)] == [1]
    assert [parked.request_id for parked in room] == [2]
    assert room.next_deadline_s() == 6.0
    assert WaitingRoom().next_deadline_s() == float("inf")


def test_a_request_that_was_answered_has_no_deadline_left() -> None:
    room = WaitingRoom()
    for number in range(5000):
        room.add(_parked(_peer(number), until_s=60.0))
        room.offer(ALL_KINDS, Giver(1))
    assert room.next_deadline_s() == float("inf")
    assert room.take_expired(100.0) == []
    assert len(room) == 0


def test_a_request_that_is_sent_again_waits_once_and_keeps_its_turn() -> None:
    room = WaitingRoom()
    room.add(_parked(b"p", until_s=5.0))
    room.add(_parked(b"q", until_s=5.0))
    room.add(_parked(b"p", until_s=9.0))
    assert room.num_by_kind() == {"LeaseRollouts": 2}
    assert [parked.peer for parked in room.take_expired(5.0)] == [b"q"]
    room.add(_parked(b"q", until_s=9.0))
    giver = Giver(1)
    room.offer(ALL_KINDS, giver)
    assert giver.got == [b"p"]


def test_requests_of_a_client_that_connected_anew_are_forgotten() -> None:
    room = WaitingRoom()
    room.add(_parked(b"p"))
    room.add(_parked(b"q"))
    assert room.take_client("client-p") == [_parked(b"p")]
    assert [parked.peer for parked in room] == [b"q"]


def test_work_goes_to_whoever_waits_longest() -> None:
    room = WaitingRoom()
    for number in range(1000):
        room.add(_parked(_peer(number)))
    giver = Giver(3)
    room.offer(ALL_KINDS, giver)
    assert giver.got == [b"0", b"1", b"2"]
    giver = Giver(2)
    room.offer(ALL_KINDS, giver)
    assert giver.got == [b"3", b"4"]


def test_everybody_is_served_before_anybody_is_served_again() -> None:
    """Round robin: who was served asks again at the end of the line."""
    room = WaitingRoom()
    served = {number: 0 for number in range(7)}
    for number in served:
        room.add(_parked(_peer(number)))
    for turn in range(1, 50):
        giver = Giver(1)
        room.offer(ALL_KINDS, giver)
        (peer,) = giver.got
        served[int(peer)] += 1
        room.add(_parked(peer, request_id=1 + turn))
        assert max(served.values()) - min(served.values()) <= 1


def test_when_there_is_nothing_to_give_only_a_few_of_many_are_asked() -> None:
    room = WaitingRoom()
    for number in range(1000):
        room.add(_parked(_peer(number)))
        room.add(_parked(_peer(number), 2, request=_lease(number % 4)))
    giver = Giver(0)
    room.offer(ALL_KINDS, giver)
    assert len(giver.asked) == 5 * (MAX_FAILED_BY + 1), "one line of verifiers, four of actors"


def test_one_client_with_many_requests_does_not_hide_the_others() -> None:
    room = WaitingRoom()
    for request_id in range(100):
        room.add(_parked(b"greedy", request_id))
    room.add(_parked(b"other"))
    giver = Giver(1, allows=lambda parked: parked.peer == b"other")
    room.offer(ALL_KINDS, giver)
    assert giver.got == [b"other"]


def test_work_that_is_barred_to_some_finds_who_may_take_it() -> None:
    room = WaitingRoom()
    for number in range(100):
        room.add(_parked(_peer(number)))
    barred = {_peer(number) for number in range(MAX_FAILED_BY)}
    giver = Giver(1, allows=lambda parked: parked.peer not in barred)
    room.offer(ALL_KINDS, giver)
    assert giver.got == [_peer(MAX_FAILED_BY)]


def test_actors_with_old_weights_do_not_stand_in_the_way_of_others() -> None:
    room = WaitingRoom()
    for number in range(100):
        room.add(_parked(_peer(number), request=_lease(0)))
    room.add(_parked(b"new", request=_lease(1)))

    def is_new(parked: Parked) -> bool:
        return isinstance(parked.request, LeasePrompts) and parked.request.serving == version(1)

    giver = Giver(5, allows=is_new)
    room.offer(ALL_KINDS, giver)
    assert giver.got == [b"new"]


def test_a_wish_for_nothing_stands_in_nobodys_way() -> None:
    room = WaitingRoom()
    for number in range(100):
        room.add(_parked(_peer(number), request=_lease(0, max_groups=0)))
    room.add(_parked(b"real", request=_lease(0)))
    giver = Giver(1, allows=lambda parked: parked.peer == b"real")
    room.offer(ALL_KINDS, giver)
    assert giver.got == [b"real"]


def test_a_request_follows_the_weights_that_its_client_proves_later() -> None:
    room = WaitingRoom()
    for number in range(20):
        room.add(_parked(_peer(number), request=_lease(0)))
    assert room.serve("client-15", version(1))
    assert not room.serve("client-15", version(1)), "it waits in that line by now"
    assert not room.serve("client-99", version(1)), "it waits for nothing"
    giver = Giver(1, allows=lambda parked: parked.peer == b"15")
    room.offer([LeasePrompts], giver)
    assert giver.got == [b"15"]


def test_only_the_kinds_that_were_woken_are_asked() -> None:
    room = WaitingRoom()
    room.add(_parked(b"verifier"))
    room.add(_parked(b"actor", request=_lease(0)))
    giver = Giver(9)
    room.offer([LeasePrompts], giver)
    assert giver.asked == [b"actor"]


@given(
    clients=st.lists(st.integers(0, 12), min_size=1, max_size=40),
    barred=st.sets(st.integers(0, 12), max_size=MAX_FAILED_BY),
)
def test_whoever_may_take_work_gets_it_however_the_line_stands(
    clients: list[int], barred: set[int]
) -> None:
    room = WaitingRoom()
    for request_id, number in enumerate(clients):
        room.add(_parked(_peer(number), request_id))
    giver = Giver(1, allows=lambda parked: int(parked.peer) not in barred)
    room.offer(ALL_KINDS, giver)
    entitled = [number for number in clients if number not in barred]
    assert giver.got == [_peer(number) for number in entitled[:1]]
