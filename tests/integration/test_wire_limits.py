"""Message caps and handshake limits, with raw sockets against the broker's own socket."""

from __future__ import annotations

import asyncio
import socket as system_socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from broker.memory_plan import MemoryPlan
from common.broker_socket import BrokerSocket, Incoming
from common.codec import MAX_FRAME_BYTES, MAX_HEADER_BYTES, encode
from common.messages import GetStatus
from common.security_probe import server_mechanism

_NULL_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)


@pytest.fixture
def broker() -> Iterator[BrokerSocket]:
    broker = BrokerSocket.bind("tcp://127.0.0.1:0")
    yield broker
    broker.close()


def _received(broker: BrokerSocket, wait_s: float) -> list[Incoming]:
    async def receive() -> list[Incoming]:
        return broker.receive_now(64) if await broker.wait_readable(wait_s) else []

    return asyncio.run(receive())


def _raw(broker: BrokerSocket) -> system_socket.socket:
    host, _, port = broker.endpoint.removeprefix("tcp://").rpartition(":")
    return system_socket.create_connection((host, int(port)), timeout=10.0)


@pytest.mark.parametrize(("excess", "arrives"), [(-1, True), (0, True), (1, False)])
def test_a_frame_up_to_the_cap_arrives_and_a_longer_one_costs_the_connection(
    broker: BrokerSocket, excess: int, arrives: bool
) -> None:
    _check_frame(broker, MAX_FRAME_BYTES + excess, arrives)


@pytest.mark.parametrize(("excess", "arrives"), [(0, True), (1, False)])
def test_a_broker_cuts_off_frames_for_which_it_has_no_memory(excess: int, arrives: bool) -> None:
    cap = MemoryPlan.under(192 << 20).largest_frame_bytes
    assert MAX_HEADER_BYTES < cap < 192 << 20
    broker = BrokerSocket.bind("tcp://127.0.0.1:0", max_frame_bytes=cap)
    try:
        _check_frame(broker, cap + excess, arrives)
    finally:
        broker.close()


def _check_frame(broker: BrokerSocket, num_bytes: int, arrives: bool) -> None:
    """A frame of this size arrives, or costs its connection; the next message arrives anyway."""
    context = zmq.Context()
    client = context.socket(zmq.DEALER)
    client.setsockopt(zmq.LINGER, 0)
    monitor = client.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    client.connect(broker.endpoint)
    frame = bytearray(num_bytes)
    client.send_multipart([b"header", frame], copy=False)
    received = _received(broker, 20.0 if arrives else 0.2)
    assert len(received) == arrives
    assert bool(monitor.poll(0 if arrives else 10_000)) is not arrives
    client.send_multipart(encode(GetStatus(), 5))  # on the same or on the next connection
    assert [item.request_id for item in _received(broker, 10.0)] == [5]
    client.disable_monitor()
    monitor.close(linger=0)
    context.destroy(linger=0)


def test_a_claim_of_a_gigabyte_costs_the_claimant_its_connection_and_no_memory(
    broker: BrokerSocket,
) -> None:
    with _raw(broker) as raw:
        raw.sendall(_NULL_GREETING)
        _read_exactly(raw, 64)
        raw.sendall(_ready_command())
        raw.sendall(b"\x02" + struct.pack(">Q", 1 << 30) + b"x" * 1000)
        assert _is_closed_within(raw, 5.0)
    assert _received(broker, 0.1) == []


def test_a_connection_that_says_nothing_is_dropped_after_the_handshake_time(
    broker: BrokerSocket,
) -> None:
    with _raw(broker) as silent, _raw(broker) as half:
        half.sendall(_NULL_GREETING[:20])
        started_s = time.monotonic()
        assert _is_closed_within(silent, 8.0)
        assert _is_closed_within(half, 8.0)
        assert 2.0 < time.monotonic() - started_s < 8.0


def test_an_orderly_peer_is_told_apart_from_these(broker: BrokerSocket) -> None:
    """The greeting above is a right one: what is dropped is dropped for what comes after it."""
    with _raw(broker) as raw:
        raw.sendall(_NULL_GREETING)
        _read_exactly(raw, 64)
        raw.sendall(_ready_command())
        *parts, last = [bytes(part) for part in encode(GetStatus(), 9)]
        raw.sendall(b"".join(bytes([1, len(part)]) + part for part in parts))
        raw.sendall(bytes([0, len(last)]) + last)
        assert [item.request_id for item in _received(broker, 5.0)] == [9]


def test_a_server_is_asked_for_its_mechanism_without_a_handshake(
    broker: BrokerSocket, tmp_path: Path
) -> None:
    assert server_mechanism(broker.endpoint) == "NULL"
    context = zmq.Context()
    server = context.socket(zmq.ROUTER)
    server.setsockopt(zmq.CURVE_SERVER, 1)
    server.setsockopt(zmq.CURVE_SECRETKEY, zmq.curve_keypair()[1])
    server.bind(f"ipc://{tmp_path}/curve.sock")
    assert server_mechanism(f"ipc://{tmp_path}/curve.sock") == "CURVE"
    context.destroy(linger=0)
    assert server_mechanism(f"ipc://{tmp_path}/gone.sock") == ""
    assert server_mechanism("sim://broker") == ""


def test_a_server_that_hangs_up_or_says_nothing_has_no_mechanism() -> None:
    with system_socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        started_s = time.monotonic()
        assert server_mechanism(f"tcp://127.0.0.1:{port}") == ""
        assert time.monotonic() - started_s < 5.0
    assert server_mechanism(f"tcp://127.0.0.1:{port}") == ""


def _ready_command() -> bytes:
    """READY of a DEALER: flags, length, name, one property (RFC 23)."""
    name, value = b"Socket-Type", b"DEALER"
    prop = bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
    body = b"\x05READY" + prop
    return b"\x04" + bytes([len(body)]) + body


def _read_exactly(raw: system_socket.socket, number: int) -> None:
    while number:
        number -= len(raw.recv(number)) or number


def _is_closed_within(raw: system_socket.socket, seconds: float) -> bool:
    raw.settimeout(seconds)
    try:
        while raw.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    return True
