"""Requests that are held."""

from __future__ import annotations

from broker.waiting_room import Parked, WaitingRoom
from common.messages import LeaseRollouts


def _parked(peer: bytes = b"p", request_id: int = 1, until_s: float = 5.0) -> Parked:
    return Parked(
        peer,
        request_id,
        f"client-{peer.decode()}",
        LeaseRollouts(max_rollouts=1, wait_s=5.0),
        until_s,
    )


def test_requests_leave_when_their_wait_runs_out() -> None:
    room = WaitingRoom()
    room.add(_parked(request_id=1, until_s=5.0))
    room.add(_parked(request_id=2, until_s=6.0))
    assert room.next_deadline_s() == 5.0
    assert [parked.request_id for parked in room.take_expired(5.0)] == [1]
    assert [parked.request_id for parked in room] == [2]
    assert WaitingRoom().next_deadline_s() == float("inf")


def test_a_request_that_is_sent_again_waits_once() -> None:
    room = WaitingRoom()
    room.add(_parked(until_s=5.0))
    room.add(_parked(until_s=9.0))
    assert [parked.until_s for parked in room] == [9.0]
    assert room.num_by_kind() == {"LeaseRollouts": 1}


def test_requests_of_a_client_that_connected_anew_are_forgotten() -> None:
    room = WaitingRoom()
    room.add(_parked(b"p"))
    room.add(_parked(b"q"))
    assert room.take_client("client-p") == [_parked(b"p")]
    assert [parked.peer for parked in room] == [b"q"]
