"""Payload servers and a broker without sockets, that fail when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from common.codec import Buffer, Decoded, decode, encode
from common.errors import RefusedError, RequestTimeoutError
from common.messages import (
    Ack,
    Ended,
    GetStores,
    ListEnded,
    Refused,
    Registered,
    ReportLost,
    Request,
    StoreAddress,
    Stores,
)
from common.payloads.backing import MemoryBacking
from common.payloads.client import StoreLinks
from common.payloads.service import PayloadService
from common.types import RolloutId

IDENTITY = Registered(run_id="run", broker_nonce="n", heartbeat_s=1.0, lease_s=5.0)


@dataclass
class ScriptedServer:
    """A payload server in memory; every message takes the way over the wire format."""

    backing: MemoryBacking = field(default_factory=MemoryBacking)
    num_timeouts: int = 0
    """So many requests go unanswered."""
    refusal: str = ""
    requests: list[Request] = field(default_factory=list)

    def answer(self, message: Request, frames: Sequence[Buffer]) -> Decoded:
        self.requests.append(message)
        if self.num_timeouts:
            self.num_timeouts -= 1
            raise RequestTimeoutError("silence")
        if self.refusal:
            raise RefusedError(self.refusal, "scripted")
        asked = decode([bytes(part) for part in encode(message, 1, frames)])
        answered = PayloadService(self.backing).handle(
            asked.message,
            asked.frames,
        )
        if isinstance(answered.message, Refused):
            raise RefusedError(answered.message.code, answered.message.reason)
        return decode([bytes(part) for part in encode(answered.message, 1, answered.frames)])


@dataclass
class ScriptedBroker:
    """Knows the servers, and which groups have ended."""

    servers: dict[str, ScriptedServer] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    """Servers that the broker does not hear of."""
    ended: set[int] = field(default_factory=set)
    stepped: set[int] = field(default_factory=set)
    lost: list[RolloutId] = field(default_factory=list)
    questions: list[ListEnded] = field(default_factory=list)
    num_lookups: int = 0

    async def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        if isinstance(message, GetStores):
            self.num_lookups += 1
            names = [name for name in message.names or self.servers if name in self.servers]
            known = sorted(set(names) - self.unknown)
            stores = tuple(StoreAddress(name=name, endpoint=f"ipc://{name}") for name in known)
            return Decoded(1, Stores(stores=stores), [])
        if isinstance(message, ReportLost):
            self.lost += message.rollout_ids
            return Decoded(1, Ack(), [])
        assert isinstance(message, ListEnded)
        self.questions.append(message)
        gone = self.ended | (self.stepped if message.stepped else set())
        ended = tuple(group_id for group_id in message.group_ids if group_id in gone)
        return Decoded(1, Ended(group_ids=ended), [])

    def links(self) -> StoreLinks:
        async def open_link(_: str, endpoint: Callable[[], str]) -> ScriptedLink:
            return ScriptedLink(self.servers[endpoint().removeprefix("ipc://")])

        return StoreLinks(self, open_link)


@dataclass
class ScriptedLink:
    """A channel to one server."""

    server: ScriptedServer

    async def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        return self.server.answer(message, frames)

    async def close(self) -> None:
        """Nothing to drop."""
