"""What a payload server answers, to whom, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec
import pytest

from common.broker_socket import BrokerSocket, Incoming
from common.clock import ManualClock
from common.codec import Buffer, Decoded
from common.content_hash import content_hash
from common.errors import RefusedError
from common.messages import (
    Ack,
    Credit,
    FetchRollouts,
    GetStatus,
    PutRollouts,
    Refused,
    Register,
    Reply,
    Request,
    ReserveBytes,
    Rollouts,
)
from common.metrics import Metrics
from common.payloads.backing import MemoryBacking
from common.payloads.server import PayloadServer
from common.payloads.service import PayloadService
from common.types import Role
from tests.broker_process import arrays_of
from tests.builders import rollout_arrays, rollout_header
from tests.unit.common.payloads.scripted_servers import IDENTITY

REGISTER = Register(role=Role.ACTOR, name="a", nonce="n", host="h", pid=1)
HEADER = rollout_header(group_id=3)
PUT = PutRollouts(rollouts=(HEADER,))
FETCH = FetchRollouts(rollout_ids=(HEADER.rollout_id,))
KEYS = {"a": (Role.ACTOR, ""), "v": (Role.VERIFIER, "")}


class RecordingSocket:
    """Keeps the replies."""

    def __init__(self) -> None:
        self.sent: list[Reply] = []
        self.leaving_bytes = 0

    def send(
        self, peer: bytes, request_id: int, message: Reply, frames: Sequence[Buffer] = ()
    ) -> None:
        self.sent.append(message)


class SlowBacking(MemoryBacking):
    """Notes what had been sent when it was committed; may be full by then."""

    def __init__(self, socket: RecordingSocket, *, full: bool = False) -> None:
        super().__init__()
        self.socket = socket
        self.full = full
        self.sent_before_commit: list[list[Reply]] = []

    def commit(self) -> None:
        self.sent_before_commit.append(list(self.socket.sent))
        if self.full:
            raise RefusedError("full", "no room")


def served(
    *requests: tuple[str, Request], with_keys: bool = False, full: bool = False
) -> tuple[RecordingSocket, SlowBacking]:
    socket = RecordingSocket()
    backing = SlowBacking(socket, full=full)
    service = PayloadService(backing)
    role_of = KEYS.get if with_keys else None
    server = PayloadServer(
        cast("BrokerSocket", socket), service, IDENTITY, Metrics(), role_of=role_of
    )
    frames = [memoryview(frame).cast("B") for frame in arrays_of(HEADER.rollout_id).frames()]
    server.turn([Incoming(b"peer", 1, Decoded(1, REGISTER, []), "a")])
    socket.sent.clear()
    incoming = [
        Incoming(b"peer", 1, Decoded(1, message, frames if message is PUT else []), user_id)
        for user_id, message in requests
    ]
    server.turn(incoming)
    return socket, backing


def test_acknowledgements_wait_for_the_one_commit_of_the_turn_and_reads_do_not() -> None:
    socket, backing = served(("", PUT), ("", FETCH), ("", PUT))
    rollouts = Rollouts(rollouts=(HEADER,))
    assert backing.sent_before_commit == [[rollouts]]
    num_bytes = sum(frame.nbytes for frame in arrays_of(HEADER.rollout_id).frames())
    told = Ack(promise="direct", credit_bytes=2 * num_bytes)
    assert socket.sent == [rollouts, told, Ack(promise="direct")]


def test_without_room_nothing_is_acknowledged() -> None:
    socket, _ = served(("", PUT), full=True)
    assert socket.sent == [Refused(code="full", reason="no room")]


@pytest.mark.parametrize(
    ("user_id", "message", "code"),
    [("a", PUT, ""), ("v", PUT, "forbidden"), ("x", FETCH, "forbidden"), ("a", FETCH, "forbidden")],
)
def test_with_keys_actors_write_and_consumers_read(
    user_id: str, message: Request, code: str
) -> None:
    socket, _ = served((user_id, message), with_keys=True)
    assert getattr(socket.sent[0], "code", "") == code


def test_what_is_for_the_broker_is_refused() -> None:
    socket, _ = served(("", GetStatus()))
    assert isinstance(socket.sent[0], Refused)


def test_nobody_puts_arrays_into_the_memory_of_an_actor_that_serves_its_own() -> None:
    backing = MemoryBacking()
    service = PayloadService(backing, takes_puts=False)
    frames = arrays_of(HEADER.rollout_id).frames()
    assert isinstance(service.handle(PUT, frames).message, Refused)
    assert not backing.group_ids()
    backing.add(HEADER, frames)
    assert service.handle(FETCH, []).message == Rollouts(rollouts=(HEADER,))


def test_a_content_hash_is_of_the_rollout_wherever_it_is_kept() -> None:
    frames = arrays_of(HEADER.rollout_id).frames()
    elsewhere = msgspec.structs.replace(HEADER, store="store-1")
    assert content_hash(HEADER, frames) == content_hash(elsewhere, frames)
    other = rollout_arrays(num_prompt=3, num_completion=5, seed=1).frames()
    assert content_hash(HEADER, frames) != content_hash(HEADER, other)


def test_a_put_without_credit_is_refused_and_one_with_a_reservation_is_kept() -> None:
    socket = RecordingSocket()
    backing = SlowBacking(socket)
    server = PayloadServer(
        cast("BrokerSocket", socket),
        PayloadService(backing),
        IDENTITY,
        Metrics(),
        in_flight_bytes=1 << 20,
    )
    frames = [memoryview(frame).cast("B") for frame in arrays_of(HEADER.rollout_id).frames()]
    num_bytes = sum(map(len, frames))
    server.turn([Incoming(b"peer", 1, Decoded(1, PUT, frames))])
    assert getattr(socket.sent.pop(), "code", "") == "no_credit"
    wish = ReserveBytes(least=num_bytes, most=num_bytes, wait_s=1.0)
    server.turn([Incoming(b"peer", 2, Decoded(2, wish, []))])
    assert socket.sent.pop() == Credit(num_bytes=num_bytes)
    server.turn([Incoming(b"peer", 3, Decoded(3, PUT, frames))])
    assert socket.sent == [Ack(promise="direct")]
    assert list(backing.group_ids()) == [HEADER.rollout_id.group_id]


def test_a_read_waits_while_slow_readers_hold_too_much() -> None:
    socket, backing = served(("", PUT))
    server = PayloadServer(
        cast("BrokerSocket", socket), PayloadService(backing), IDENTITY, Metrics()
    )
    socket.leaving_bytes = 1 << 40
    socket.sent.clear()
    server.turn([Incoming(b"r", 1, Decoded(1, FETCH, []))])
    assert socket.sent == []
    socket.leaving_bytes = 0
    server.turn([])
    assert socket.sent == [Rollouts(rollouts=(HEADER,))]


def test_a_silent_producer_holds_no_credit() -> None:
    socket, clock = RecordingSocket(), ManualClock()
    server = PayloadServer(
        cast("BrokerSocket", socket),
        PayloadService(SlowBacking(socket)),
        IDENTITY,
        Metrics(),
        in_flight_bytes=1 << 20,
        clock=clock,
    )
    most = 3 << 18
    wish = ReserveBytes(least=most, most=most, wait_s=60.0)
    server.turn([Incoming(b"a", 1, Decoded(1, wish, []))])
    clock.advance(1.0)
    server.turn([Incoming(b"b", 1, Decoded(1, wish, []))])
    assert socket.sent == [Credit(num_bytes=most)]
    clock.advance(IDENTITY.lease_s - 1.0)
    server.turn([])
    server.turn([])
    assert socket.sent == [Credit(num_bytes=most), Credit(num_bytes=most)]
