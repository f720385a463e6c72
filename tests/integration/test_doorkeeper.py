"""The server's end of the handshake: who is told apart, what is logged, what fails closed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from common.broker_socket import BrokerSocket
from common.codec import encode
from common.keys_cli import ROLES, make_keys
from common.messages import GetStatus
from common.security import ClientSecurity, ServerSecurity
from common.security_clients import read_clients
from common.security_zap import zap_reply
from common.types import Role


class Log:
    """Keeps warnings and errors."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, object]] = []

    def warning(self, what: str, *, number: int) -> None:
        self.lines.append((what, number))

    def error(self, what: str, *, error: str) -> None:
        self.lines.append((what, error))


class Gate:
    """A broker socket behind keys, in this process."""

    def __init__(self, folder: Path) -> None:
        self.keys = folder / "keys"
        make_keys(self.keys, [(role, "") for role in ROLES])
        self.log = Log()
        self.denied: list[int] = []
        self.security = ServerSecurity.load(
            self.keys, "broker", "broker", count=self.denied.append, log=self.log
        )
        self.socket = BrokerSocket.bind("tcp://127.0.0.1:0", secure=self.security.secure)
        self.context = zmq.Context()
        self.clients: list[zmq.Socket[bytes]] = []

    def connect(self, keys: Path, role: Role) -> zmq.Socket[bytes]:
        client = self.context.socket(zmq.DEALER)
        client.setsockopt(zmq.LINGER, 0)
        security = ClientSecurity.load(keys, role, "x", server="broker")
        client.setsockopt(zmq.CURVE_SERVERKEY, self.server_public())
        client.setsockopt(zmq.CURVE_PUBLICKEY, security.pair.public)
        client.setsockopt(zmq.CURVE_SECRETKEY, security.pair.secret)
        client.connect(self.socket.endpoint)
        self.clients.append(client)  # one that nobody refers to is closed
        client.send_multipart(encode(GetStatus(), 1))
        return client

    def server_public(self) -> bytes:
        return ClientSecurity.load(self.keys, Role.ACTOR, "x").server_public

    def user_ids(self, wait_s: float) -> list[str]:
        async def receive() -> list[str]:
            if not await self.socket.wait_readable(wait_s):
                return []
            return [item.user_id for item in self.socket.receive_now(64)]

        return asyncio.run(receive())

    def close(self) -> None:
        self.context.destroy(linger=0)
        self.socket.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.close()


def test_every_message_carries_the_role_of_its_senders_key(gate: Gate) -> None:
    for role in Role:
        gate.connect(gate.keys, role)
        (user_id,) = gate.user_ids(5.0)
        assert gate.security.role_of(user_id) == (role, "")
    assert gate.security.role_of("") is None
    assert gate.security.role_of("learner//0000000000000000") is None


def test_refusals_are_counted_one_by_one_and_logged_together(gate: Gate, tmp_path: Path) -> None:
    strangers = tmp_path / "strangers"
    make_keys(strangers, [("actor", ""), ("broker", "")])
    monitors = []
    for _ in range(50):
        client = gate.connect(strangers, Role.ACTOR)
        monitors.append(client.get_monitor_socket(zmq.EVENT_DISCONNECTED))
    gate.connect(gate.keys, Role.VERIFIER)
    assert len(gate.user_ids(10.0)) == 1
    for monitor in monitors:
        monitor.poll(1000)
        monitor.close(linger=0)
    assert gate.user_ids(0.0) == []
    assert sum(gate.denied) == 50
    assert 1 <= len(gate.log.lines) <= 2
    assert {what for what, _ in gate.log.lines} == {"connections were refused"}


def test_without_its_doorkeeper_nobody_comes_in(gate: Gate) -> None:
    guard = gate.socket._guard
    assert guard is not None
    guard.close()
    client = gate.connect(gate.keys, Role.ACTOR)
    monitor = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    assert not monitor.poll(500)
    assert gate.user_ids(0.0) == []
    monitor.close(linger=0)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"1.0"],
        [b"1.0", b"7", b"headrace", b"127.0.0.1", b"", b"NULL"],
        [b"1.0", b"7", b"headrace", b"127.0.0.1", b"", b"NULL", bytes(32)],
        [b"1.0", b"7", b"headrace", b"127.0.0.1", b"", b"PLAIN", b"admin", b"admin"],
        [b"1.0", b"7", b"headrace", b"127.0.0.1", b"", b"CURVE", bytes(32)],
        [b"1.0", b"7", b"headrace", b"127.0.0.1", b"", b"CURVE", bytes(31)],
        [b"2.0", b"7", b"headrace", b"127.0.0.1", b"", b"CURVE", bytes(32)],
    ],
)
def test_whatever_is_no_known_curve_key_is_refused(gate: Gate, frames: list[bytes]) -> None:
    reply = zap_reply(frames, gate.security._clients)
    assert reply[2:] == [b"400", b"unknown key", b"", b""]


def test_the_broker_is_nobodys_client(gate: Gate) -> None:
    broker_public = gate.server_public().decode()
    assert broker_public not in {client.key for client in read_clients(gate.keys / "clients.toml")}
