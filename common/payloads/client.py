"""A client of payload servers: arrays in and out, in parallel, with bounded bytes under way.

The broker says where each server is. A server that does not answer is asked again, at the address
that the broker knows by then, until ``patience_s`` have passed: a store that starts again has
everything that it acknowledged. What a server says it does not hold is lost at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from dataclasses import dataclass
from typing import Any, Protocol

from common.codec import Buffer, Decoded, frames_of_each
from common.content_hash import header_hash
from common.errors import DecodeError, InfraError
from common.messages import FetchRollouts, GetStores, ReportLost, Request, Rollouts, Stores
from common.types import RolloutHeader, RolloutId

REQUEST_BYTES = 8 << 20
"""Array bytes that one request asks for, or puts: enough to make its own cost vanish."""
REQUEST_ROLLOUTS = 512
REQUEST_TIMEOUT_S = 10.0
RETRY_S = 0.2


class Requester(Protocol):
    """What is needed of :class:`common.transport.Channel`."""

    async def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        """Send ``message`` and return the reply."""
        ...


class Link(Requester, Protocol):
    """A channel to one payload server."""

    async def close(self) -> None:
        """Drop the connection."""
        ...


OpenLink = Callable[[str, Callable[[], str]], Awaitable[Link]]
"""Connects to the server of this name at the address that the function tells at each reconnect."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One rollout whose arrays are wanted."""

    rollout_id: RolloutId
    store: str
    """Payload server that holds them, "" for the broker."""
    num_bytes: int
    header_hash: str = ""
    """Of the header that the ledger knows; "" takes whatever is kept under this id."""

    @classmethod
    def of(cls, header: RolloutHeader) -> Wanted:
        """What to ask for, from the header of a rollout."""
        num_bytes = sum(header.frame_bytes())
        return cls(header.rollout_id, header.store, num_bytes, header_hash(header))

    def is_met_by(self, fetched: Fetched) -> bool:
        """Whether this is the rollout that the ledger knows, not another one under its id."""
        return not self.header_hash or self.header_hash == header_hash(fetched.header)


@dataclass(frozen=True, slots=True)
class Fetched:
    """One rollout with its frames."""

    header: RolloutHeader
    frames: list[memoryview]


class UnknownStoreError(InfraError):
    """The broker knows of no live payload server of this name."""


class StoreLinks:
    """Connections to payload servers by name, at the addresses that the broker tells."""

    def __init__(self, broker: Requester, open_link: OpenLink) -> None:
        self._broker = broker
        self._open_link = open_link
        self._endpoints: dict[str, str] = {}
        self._links: dict[str, Link] = {}
        self._connecting: dict[str, asyncio.Lock] = {}

    async def request(
        self, store: str, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float
    ) -> Decoded:
        """Ask one server once.

        Raises :class:`InfraError` when it does not answer or refuses; the broker is then asked
        where it is by now, and :class:`UnknownStoreError` says that there is none of this name.
        """
        link = await self._link(store)
        try:
            return await link.request(message, frames, timeout_s=timeout_s)
        except (InfraError, DecodeError) as error:
            await self._find(store)
            raise InfraError(f"payload server {store!r}: {error}") from None

    async def locate(self, names: Sequence[str] = ()) -> list[str]:
        """Ask the broker where these servers are, or all stores; returns those that are alive."""
        reply = (await self._broker.request(GetStores(names=tuple(names)))).message
        if not isinstance(reply, Stores):
            raise DecodeError(f"unexpected reply {type(reply).__name__} to GetStores")
        self._endpoints.update({item.name: item.endpoint for item in reply.stores})
        return [item.name for item in reply.stores]

    async def close(self) -> None:
        """Drop all connections."""
        links, self._links = self._links, {}
        for link in links.values():
            await link.close()

    async def _link(self, store: str) -> Link:
        async with self._connecting.setdefault(store, asyncio.Lock()):
            if store not in self._links:
                await self._find(store)
                self._links[store] = await self._open_link(store, lambda: self._endpoints[store])
            return self._links[store]

    async def _find(self, store: str) -> None:
        if store not in await self.locate([store]):
            raise UnknownStoreError(f"no payload server {store!r} is alive")


class PayloadClient:
    """Fetches arrays from wherever they are; safe for many concurrent calls on one loop."""

    def __init__(
        self,
        broker: Requester,
        links: StoreLinks,
        *,
        patience_s: float,
        gone_with_its_server: bool,
        max_bytes_in_flight: int = 4 * REQUEST_BYTES,
    ) -> None:
        """``gone_with_its_server``: a server that the broker no longer knows took all with it."""
        self._broker = broker
        self._links = links
        self._patience_s = patience_s
        self._gone_with_its_server = gone_with_its_server
        self._room = ByteRoom(max_bytes_in_flight)
        self.num_lost = 0

    async def fetch(self, wanted: Sequence[Wanted]) -> list[Fetched | None]:
        """Each rollout in order; None for one that is lost.

        So is one in whose place its server holds another one of the same id: a broker with relaxed
        acknowledgements may have granted an attempt twice. Losses are reported to the broker before
        this returns, so that it has them sampled again. Raises :class:`InfraError` when the broker
        does not answer, or does not hold what it should.
        """
        found: dict[RolloutId, Fetched] = {}
        await _all_or_none(
            [self._fetch_part(store, part, found) for store, part in _requests(wanted)]
        )
        lost = tuple(item.rollout_id for item in wanted if item.rollout_id not in found)
        for start in range(0, len(lost), REQUEST_ROLLOUTS):
            part_lost = lost[start : start + REQUEST_ROLLOUTS]
            await self._broker.request(ReportLost(rollout_ids=part_lost))
        self.num_lost += len(lost)
        return [found.get(item.rollout_id) for item in wanted]

    async def _fetch_part(
        self, store: str, part: Sequence[Wanted], found: dict[RolloutId, Fetched]
    ) -> None:
        message = FetchRollouts(rollout_ids=tuple(item.rollout_id for item in part))
        num_bytes = sum(item.num_bytes for item in part)
        async with self._room.taken(num_bytes):
            if store:
                decoded = await self._ask_store(store, message)
            else:
                decoded = await self._broker.request(message)
        if decoded is not None:
            found.update(_matching(part, _rollouts_in(decoded)))

    async def _ask_store(self, store: str, message: Request) -> Decoded | None:
        """The answer of one server, or None when there will be none."""
        clock = asyncio.get_running_loop().time
        deadline_s = clock() + self._patience_s
        while True:
            timeout_s = min(REQUEST_TIMEOUT_S, max(deadline_s - clock(), RETRY_S))
            try:
                return await self._links.request(store, message, timeout_s=timeout_s)
            except UnknownStoreError:
                if self._gone_with_its_server or clock() >= deadline_s:
                    return None
            except (InfraError, DecodeError):
                if clock() >= deadline_s:
                    return None
            await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        """Drop all connections to payload servers."""
        await self._links.close()


class ByteRoom:
    """Bounds the bytes of concurrent requests; one that is larger than all room goes alone."""

    def __init__(self, num_bytes: int) -> None:
        self._limit = num_bytes
        self._taken = 0
        self._freed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def taken(self, num_bytes: int) -> AsyncIterator[None]:
        """Wait for room, first come first served, and hold it inside the block."""
        size = min(num_bytes, self._limit)
        async with self._freed:
            await self._freed.wait_for(lambda: self._taken + size <= self._limit)
            self._taken += size
        try:
            yield
        finally:
            async with self._freed:
                self._taken -= size
                self._freed.notify_all()


async def _all_or_none(parts: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; the first error, as it is, ends the others."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _requests(wanted: Iterable[Wanted]) -> Iterator[tuple[str, list[Wanted]]]:
    """Requests of bounded size, the servers taking turns so that all of them work at once."""
    by_store: dict[str, list[list[Wanted]]] = {}
    for item in wanted:
        parts = by_store.setdefault(item.store, [[]])
        size = sum(other.num_bytes for other in parts[-1]) + item.num_bytes
        if parts[-1] and (size > REQUEST_BYTES or len(parts[-1]) >= REQUEST_ROLLOUTS):
            parts.append([])
        parts[-1].append(item)
    for turn in itertools.zip_longest(*by_store.values()):
        for store, part in zip(by_store, turn, strict=True):
            if part:
                yield store, part


def _matching(
    wanted: Iterable[Wanted], fetched: Iterable[Fetched]
) -> Iterator[tuple[RolloutId, Fetched]]:
    """What was asked for, by id; raises :class:`InfraError` where the broker sent another one."""
    by_id = {item.header.rollout_id: item for item in fetched}
    for item in wanted:
        found = by_id.get(item.rollout_id)
        if found is not None and item.is_met_by(found):
            yield item.rollout_id, found
        elif found is not None and not item.store:
            raise InfraError(f"the broker keeps another rollout as {item.rollout_id} than it said")


def _rollouts_in(decoded: Decoded) -> list[Fetched]:
    if not isinstance(decoded.message, Rollouts):
        raise DecodeError(f"unexpected reply {type(decoded.message).__name__} to FetchRollouts")
    rollouts = decoded.message.rollouts
    frames = frames_of_each(rollouts, decoded.frames)
    return [Fetched(header, list(own)) for header, own in zip(rollouts, frames, strict=True)]
