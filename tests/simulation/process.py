"""A simulated client process: a real channel, and a life that can be ended and begun again."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import msgspec

from common.codec import Buffer, Decoded
from common.errors import RefusedError, RequestTimeoutError
from common.liveness import Backoff
from common.messages import Heartbeat, HeartbeatReply, Lease, Request
from common.payloads.client import PayloadClient, StoreLinks, Wanted
from common.payloads.wiring import CONNECT_TIMEOUT_S
from common.transport import Channel
from common.types import Role, RolloutHeader, WeightVersion
from tests.simulation.behaviour import Behaviour
from tests.simulation.books import Books
from tests.simulation.network import BROKER, Network, SimulatedContext, as_context

Payloads = Literal["broker", "store", "direct"]
HEARTBEAT_S = 2.0
_RESTART_S = 8.0
_REQUEST_S = 60.0
_PATIENCE_S = 900.0
"""Longer than any fault lasts: what a store has promised must come in the end."""


class Process(ABC):
    """One named client over all its lives. :meth:`live` is what a life does."""

    def __init__(
        self,
        name: str,
        role: Role,
        network: Network,
        books: Books,
        behaviour: Behaviour,
        seeded: random.Random,
        payloads: Payloads = "broker",
    ) -> None:
        self.name = name
        self.network = network
        self.payloads = payloads
        self.payload_endpoint = ""
        """Where this process serves arrays, if it does."""
        self.books = books
        self.behaviour = behaviour
        self.random = seeded
        self.is_done = False
        self.held: dict[int, set[int]] = {}
        """Indices under work by attempt; ``groups`` has the group of each."""
        self.groups: dict[int, int] = {}
        self._role = role
        self._forgotten: set[int] = set()
        self._awake = asyncio.Event()
        self._awake.set()
        self._life: asyncio.Task[None] | None = None
        self._num_lives = 0
        self._channel: Channel | None = None
        self.links = self._new_links()

    @abstractmethod
    async def live(self) -> None:
        """Work until killed, or until the run has ended."""

    # --- life and death ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Live, and live again after each death, until done."""
        while not self.is_done:
            self._life = asyncio.create_task(self._one_life(), name=self.name)
            await asyncio.wait({self._life})
            if not self._life.cancelled() and (error := self._life.exception()) is not None:
                raise error
            if not self.is_done:
                await asyncio.sleep(_RESTART_S * self.random.random())

    def kill(self) -> None:
        """End this life at once."""
        self.thaw()
        if self._life is not None:
            self._life.cancel()

    def freeze(self) -> None:
        """Stop, as SIGSTOP does: nothing is sent, nothing received."""
        self._awake.clear()
        self.network.freeze(self.name)

    def thaw(self) -> None:
        """Go on as if nothing had happened."""
        self._awake.set()
        self.network.thaw(self.name)

    async def _one_life(self) -> None:
        self._num_lives += 1
        self.held.clear()
        self.groups.clear()
        self._forgotten.clear()
        try:
            self.links = self._new_links()
            self._channel = await self._connect(lambda: BROKER, _REQUEST_S)
            await self.live()
        except* RequestTimeoutError:
            self.network.trace.step(f"{self.name} gave up")
        except* RefusedError as group:
            codes = set(_refusals(group))
            if not codes <= {"sealed", "name_taken"} | self.books.codes_of_loss:
                raise
            self.is_done = "sealed" in codes
            self.on_refused(codes)
        finally:
            await self.links.close()
            if self._channel is not None:
                await self._channel.close()
                self._channel = None

    def on_refused(self, codes: Collection[str]) -> None:  # noqa: B027 # most do not care
        """The broker has refused something, which ended this life."""

    def _new_links(self) -> StoreLinks:
        async def open_link(_: str, endpoint: Callable[[], str]) -> Channel:
            return await self._connect(endpoint, CONNECT_TIMEOUT_S)

        return StoreLinks(self, open_link)

    def new_payload_client(self) -> PayloadClient:
        """Reads arrays from wherever they are."""
        return PayloadClient(
            self,
            self.links,
            patience_s=_PATIENCE_S,
            gone_with_its_server=self.payloads == "direct",
        )

    async def fetch(self, headers: Sequence[RolloutHeader]) -> bool:
        """Fetch and check the arrays of these rollouts; False when some are lost."""
        fetched = await self.new_payload_client().fetch([Wanted.of(header) for header in headers])
        for header, item in zip(headers, fetched, strict=True):
            if item is not None:
                self.books.check_content(header, item.frames)
        return None not in fetched

    async def _connect(self, endpoint: Callable[[], str], timeout_s: float) -> Channel:
        context = as_context(SimulatedContext(self.network, self.name))
        pid = self._num_lives
        backoff = random.Random(f"{self.name}/{pid}")

        class SimulatedChannel(Channel):
            """The real channel over simulated sockets, with repeatable names."""

            def __init__(self, **options: Any) -> None:
                super().__init__(**options)
                self._context = context
                self._backoff = Backoff(backoff)
                message = self._registration.message
                self._registration.message = msgspec.structs.replace(
                    message, nonce=f"nonce-{pid}", host=message.name, pid=pid
                )

        return await SimulatedChannel.connect(
            role=self._role,
            name=self.name,
            endpoint=endpoint,
            timeout_s=timeout_s,
            payload_endpoint=self.payload_endpoint,
        )

    # --- talking ----------------------------------------------------------------------------------

    async def awake(self) -> None:
        """Return when the process is not stopped."""
        await self._awake.wait()

    async def pause(self, seconds: float) -> None:
        """Work on something for a while."""
        await asyncio.sleep(seconds)
        await self.awake()

    async def ask(self, message: Request, frames: Sequence[Buffer] = ()) -> Decoded:
        """Send a request and return the reply, as the real roles do."""
        return await self.request(message, frames)

    async def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = _REQUEST_S
    ) -> Decoded:
        """As :meth:`common.transport.Channel.request`, while the process is not stopped."""
        if self._channel is None:
            raise RequestTimeoutError("not connected")
        await self.awake()
        decoded = await self._channel.request(message, frames, timeout_s=timeout_s)
        await self.awake()
        return decoded

    async def send_heartbeats(self) -> None:
        """Name what is held every two seconds; drop what the broker says is lost."""
        while True:
            await self.pause(HEARTBEAT_S)
            leases = tuple(
                Lease(group_id=self.groups[held], indices=tuple(sorted(indices)), attempt=held)
                for held, indices in sorted(self.held.items())
                if held not in self._forgotten
            )
            reply = (await self.ask(Heartbeat(leases=leases, serving=self.serving_now()))).message
            assert isinstance(reply, HeartbeatReply)
            for lease in reply.revoked:
                self.on_revoked(lease)

    def serving_now(self) -> WeightVersion | None:
        """The weights to report with a heartbeat."""
        return None

    def on_revoked(self, lease: Lease) -> None:
        """The broker gave a part of a lease to somebody else: do not name it any more."""
        for index in lease.indices:
            self.let_go(lease.attempt, index)

    def hold(self, lease: Lease) -> None:
        """Work on a lease begins."""
        self.held[lease.attempt] = set(lease.indices)
        self.groups[lease.attempt] = lease.group_id
        if self.random.random() < self.behaviour.forgotten_lease:
            self._forgotten.add(lease.attempt)

    def is_forgotten(self, attempt: int) -> bool:
        """Whether no heartbeat names this lease."""
        return attempt in self._forgotten

    async def work(self, attempt: int, seconds: float) -> None:
        """Take so long over a lease; one that was forgotten outlasts the broker's patience."""
        if attempt in self._forgotten:
            seconds += self.random.uniform(10.0, 50.0)
        await self.pause(seconds)

    def let_go(self, attempt: int, index: int) -> None:
        """One index of a lease is done with."""
        indices = self.held.get(attempt, set())
        indices.discard(index)
        if not indices:
            self.held.pop(attempt, None)
            self.groups.pop(attempt, None)


def _refusals(group: BaseExceptionGroup[RefusedError]) -> list[str]:
    codes = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            codes.extend(_refusals(error))
        else:
            codes.append(error.code)
    return codes
