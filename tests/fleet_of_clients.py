"""Many clients of one broker in one process: raw sockets, real messages, a channel's patience.

Each client registers, sends a heartbeat every interval, registers again when the broker does not
know it, and connects anew after a random pause when the broker is silent, as ``common.transport``
does. A thousand of them cost one thread.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import zmq

from common.codec import decode, encode
from common.errors import DecodeError
from common.liveness import LOST_AFTER, Backoff
from common.messages import Heartbeat, Refused, Register, Registered
from common.sockets import set_common_options
from common.types import Role

_REGISTER, _HEARTBEAT = 1, 2


class SimulatedClient:
    """One client: its socket, and when it will do what."""

    def __init__(self, name: str, role: Role, heartbeat_s: float, seeded: random.Random) -> None:
        self.name = name
        self.registered_at_s: float | None = None
        self.num_sockets = 0
        self.socket: zmq.Socket[bytes] | None = None
        self._heartbeat_s = heartbeat_s
        self._register = Register(role=role, name=name, nonce=name, host="fleet", pid=1)
        self._backoff = Backoff(seeded)
        self._connect_at_s = 0.0
        self._beat_at_s = 0.0
        self._heard_at_s = 0.0

    def forget(self) -> None:
        """Wait for a registration that is yet to come."""
        self.registered_at_s = None

    def step(self, fleet: FleetOfClients, now_s: float) -> None:
        """Do what is due."""
        if self.socket is None:
            if now_s >= self._connect_at_s:
                self._connect(fleet, now_s)
        elif now_s - self._heard_at_s > LOST_AFTER * self._heartbeat_s:
            self._drop(fleet, now_s)
        elif now_s >= self._beat_at_s:
            self._beat_at_s = now_s + self._heartbeat_s
            self._send(Heartbeat(), _HEARTBEAT)

    def receive(self, now_s: float) -> None:
        """Take in one reply."""
        if self.socket is None:
            return
        self._heard_at_s = now_s
        self._backoff.reset()
        reply = decode(self.socket.recv_multipart()).message
        if isinstance(reply, Registered):
            self.registered_at_s = now_s
        elif isinstance(reply, Refused) and reply.code == "unregistered":
            self._send(self._register, _REGISTER)
        elif isinstance(reply, Refused):
            raise DecodeError(f"{self.name}: {reply.code}: {reply.reason}")

    def _connect(self, fleet: FleetOfClients, now_s: float) -> None:
        self.socket = fleet.open_socket(self)
        self.num_sockets += 1
        self._heard_at_s = now_s
        self._beat_at_s = now_s + self._heartbeat_s
        self._send(self._register, _REGISTER)

    def _drop(self, fleet: FleetOfClients, now_s: float) -> None:
        if self.socket is not None:
            fleet.close_socket(self.socket)
        self.socket = None
        self._connect_at_s = now_s + self._backoff.pause_s()

    def _send(self, message: Heartbeat | Register, request_id: int) -> None:
        if self.socket is not None:
            self.socket.send_multipart(encode(message, request_id))


class FleetOfClients:
    """``num_clients`` actors of one run."""

    def __init__(
        self,
        endpoint: Callable[[], str],
        num_clients: int,
        *,
        heartbeat_s: float = 2.0,
        role: Role = Role.ACTOR,
        seed: int = 0,
    ) -> None:
        self._endpoint = endpoint
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 65535)
        self._poller = zmq.Poller()
        self._owners: dict[zmq.Socket[bytes], SimulatedClient] = {}
        seeded = random.Random(seed)
        self.clients = [
            SimulatedClient(f"client-{n}", role, heartbeat_s, seeded) for n in range(num_clients)
        ]

    @property
    def num_registered(self) -> int:
        """Clients that have been taken in since :meth:`forget_registrations`."""
        return sum(client.registered_at_s is not None for client in self.clients)

    def forget_registrations(self) -> None:
        """Count anew."""
        for client in self.clients:
            client.forget()

    def run_for(self, seconds: float) -> None:
        """Let the clients live for a while."""
        self._run(lambda: False, seconds)

    def run_until_registered(self, timeout_s: float) -> float:
        """Seconds until every client is registered; ``TimeoutError`` says how many are."""
        start_s = time.monotonic()
        if not self._run(lambda: self.num_registered == len(self.clients), timeout_s):
            raise TimeoutError(
                f"{self.num_registered} of {len(self.clients)} clients registered in {timeout_s} s"
            )
        return time.monotonic() - start_s

    def close(self) -> None:
        """Close all sockets."""
        self._context.destroy(linger=0)

    def open_socket(self, client: SimulatedClient) -> zmq.Socket[bytes]:
        """A connected socket of ``client``."""
        socket = self._context.socket(zmq.DEALER)
        set_common_options(socket)
        socket.connect(self._endpoint())
        self._poller.register(socket, zmq.POLLIN)
        self._owners[socket] = client
        return socket

    def close_socket(self, socket: zmq.Socket[bytes]) -> None:
        """Close a socket with whatever it still had queued."""
        self._poller.unregister(socket)
        del self._owners[socket]
        socket.close(linger=0)

    def _run(self, is_done: Callable[[], bool], timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            now_s = time.monotonic()
            for client in self.clients:
                client.step(self, now_s)
            for socket, _ in self._poller.poll(20):
                self._owners[socket].receive(time.monotonic())
            if is_done():
                return True
        return False
