"""Clients of the broker by name: who they are, when last heard, what they serve. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.messages import FleetMember, Register, StoreAddress
from common.types import Role, WeightVersion

QUIET_HEARTBEATS = 2
"""A process that has missed so many may be replaced by another of its name."""


@dataclass(slots=True)
class Client:
    """One registered process."""

    registration: Register
    heard_at_s: float
    serving: WeightVersion | None = None
    user_id: str = ""
    """Whose key it registered with, "" without keys."""


class Fleet:
    """Registered clients; one that is silent for ``dead_after_s`` is gone.

    Clients are kept in the order in which they were last heard, so that nothing is looked at twice.
    """

    def __init__(self, dead_after_s: float, *, heartbeat_s: float = 2.0) -> None:
        self._dead_after_s = dead_after_s
        self._quiet_s = QUIET_HEARTBEATS * heartbeat_s
        self._clients: OrderedDict[str, Client] = OrderedDict()
        self._num_by_role: Counter[Role] = Counter()

    def get(self, name: str) -> Client | None:
        """The client of this name."""
        return self._clients.get(name)

    def live_twin(
        self, registration: Register, now_s: float, is_connected: Callable[[], bool]
    ) -> Register | None:
        """The other process that has this name and lives, if there is one.

        A process that was killed has lost its connection, so ``is_connected`` (asked only if it
        matters) tells a restart from a twin at once. Where the machine is gone too, the connection
        only seems open: then silence tells, after :data:`QUIET_HEARTBEATS` heartbeats.
        """
        client = self._clients.get(registration.name)
        if client is None or client.registration.nonce == registration.nonce:
            return None
        known = client.registration
        if (known.host, known.pid) == (registration.host, registration.pid):
            return None  # one process with a second channel
        if now_s - client.heard_at_s >= self._quiet_s or not is_connected():
            return None
        return known

    def register(self, registration: Register, now_s: float, user_id: str = "") -> bool:
        """Take in a client; True when a process of this name was known and this is another one."""
        known = self._remove(registration.name)
        restarted = known is not None and known.registration.nonce != registration.nonce
        serving = None if known is None or restarted else known.serving
        self._clients[registration.name] = Client(registration, now_s, serving, user_id)
        self._num_by_role[registration.role] += 1
        return restarted

    def hear(self, name: str, now_s: float) -> bool:
        """Note a sign of life; False when there is no such client."""
        client = self._clients.get(name)
        if client is None:
            return False
        if client.heard_at_s != now_s:
            client.heard_at_s = now_s
            self._clients.move_to_end(name)
        return True

    def set_serving(self, name: str, version: WeightVersion) -> None:
        """Note the weights that an actor has proved to serve."""
        client = self._clients.get(name)
        if client is not None:
            client.serving = version

    def serving(self, name: str) -> WeightVersion | None:
        """The weights that a client has last proved to serve."""
        client = self._clients.get(name)
        return None if client is None else client.serving

    def remove_revoked(self, is_revoked: Callable[[str], bool]) -> list[str]:
        """Forget and return the clients whose key was revoked."""
        gone = [name for name, client in self._clients.items() if is_revoked(client.user_id)]
        for name in gone:
            self._remove(name)
        return gone

    def remove_silent(self, now_s: float) -> list[str]:
        """Forget and return the clients that are gone."""
        gone: list[str] = []
        for name, client in self._clients.items():
            if now_s - client.heard_at_s < self._dead_after_s:
                break
            gone.append(name)
        for name in gone:
            self._remove(name)
        return gone

    def __contains__(self, name: str) -> bool:
        return name in self._clients

    def num_by_role(self) -> Counter[Role]:
        """Live clients of each role."""
        return +self._num_by_role

    def members(self, now_s: float) -> tuple[FleetMember, ...]:
        """The live clients, by name."""
        return tuple(
            FleetMember(
                role=client.registration.role,
                name=name,
                host=client.registration.host,
                pid=client.registration.pid,
                silent_s=max(0.0, now_s - client.heard_at_s),
                serving=client.serving,
            )
            for name, client in sorted(self._clients.items())
        )

    def stores(self, names: Sequence[str] = ()) -> tuple[StoreAddress, ...]:
        """Where the payload servers of these names are; without names, all stores."""
        known = self._clients
        wanted = names or [name for name in known if known[name].registration.role is Role.STORE]
        return tuple(
            StoreAddress(name=name, endpoint=known[name].registration.payload_endpoint)
            for name in sorted(wanted)
            if name in known and known[name].registration.payload_endpoint
        )

    def _remove(self, name: str) -> Client | None:
        client = self._clients.pop(name, None)
        if client is not None:
            self._num_by_role[client.registration.role] -= 1
        return client
