"""Clients of the broker by name: who they are, when last heard, what they serve. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from common.messages import FleetMember, Register
from common.types import Role, WeightVersion


@dataclass(slots=True)
class Client:
    """One registered process."""

    registration: Register
    heard_at_s: float
    serving: WeightVersion | None = None


class Fleet:
    """Registered clients; one that is silent for ``dead_after_s`` is gone."""

    def __init__(self, dead_after_s: float) -> None:
        self._dead_after_s = dead_after_s
        self._clients: dict[str, Client] = {}

    def register(self, registration: Register, now_s: float) -> bool:
        """Take in a client; True when a process of this name was known and this is another one."""
        known = self._clients.get(registration.name)
        restarted = known is not None and known.registration.nonce != registration.nonce
        serving = None if known is None or restarted else known.serving
        self._clients[registration.name] = Client(registration, now_s, serving)
        return restarted

    def hear(self, name: str, now_s: float) -> None:
        """Note a sign of life."""
        client = self._clients.get(name)
        if client is not None:
            client.heard_at_s = now_s

    def set_serving(self, name: str, version: WeightVersion) -> None:
        """Note the weights that an actor has proved to serve."""
        client = self._clients.get(name)
        if client is not None:
            client.serving = version

    def serving(self, name: str) -> WeightVersion | None:
        """The weights that a client has last proved to serve."""
        client = self._clients.get(name)
        return None if client is None else client.serving

    def remove_silent(self, now_s: float) -> list[str]:
        """Forget and return the clients that are gone."""
        gone = [
            name
            for name, client in self._clients.items()
            if now_s - client.heard_at_s >= self._dead_after_s
        ]
        for name in gone:
            del self._clients[name]
        return gone

    def __contains__(self, name: str) -> bool:
        return name in self._clients

    def num_by_role(self) -> Counter[Role]:
        """Live clients of each role."""
        return Counter(client.registration.role for client in self._clients.values())

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
