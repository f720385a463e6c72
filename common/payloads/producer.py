"""The producer's end: puts each rollout into a store that is alive.

What gathers while requests are under way goes out in one request, so that a busy producer pays the
cost of a message once for many rollouts and an idle one waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.codec import Buffer
from common.errors import DecodeError, InfraError
from common.messages import Ack, Promise, PutRollouts
from common.payloads.client import REQUEST_BYTES, RETRY_S, StoreLinks
from common.payloads.placement import ranked_stores
from common.types import RolloutHeader

PUTS_IN_FLIGHT = 4
PUT_TIMEOUT_S = 10.0
LOCATE_EVERY_S = 5.0
AVOID_S = 10.0
"""A store that did not take a put is passed over for so long, while there is another."""


@dataclass(slots=True)
class _Put:
    """One rollout on its way."""

    header: RolloutHeader
    frames: Sequence[Buffer]
    promise: asyncio.Future[Promise]

    @property
    def num_bytes(self) -> int:
        return sum(self.header.frame_bytes())


@dataclass(slots=True)
class _Outbox:
    """What waits for one store."""

    waiting: list[_Put] = field(default_factory=list)
    num_in_flight: int = 0


class StoreProducer:
    """Puts rollouts into stores; safe for many concurrent calls on one loop."""

    def __init__(self, links: StoreLinks) -> None:
        self._links = links
        self._outboxes: dict[str, _Outbox] = {}
        self._requests: set[asyncio.Task[None]] = set()
        self._alive: list[str] = []
        self._located_at_s = float("-inf")
        self._avoid_until_s: dict[str, float] = {}

    async def put(self, header: RolloutHeader, frames: Sequence[Buffer]) -> tuple[str, Promise]:
        """Store one rollout; returns where it is and what was promised.

        Tries the stores in the order of the group's preference, and goes on until one has taken it.
        """
        while True:
            for store in await self._candidates(header.rollout_id.group_id):
                try:
                    return store, await self._put_into(store, header, frames)
                except (InfraError, DecodeError):
                    self._avoid_until_s[store] = self._now_s() + AVOID_S
            await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        """Give up what is under way."""
        for request in list(self._requests):
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    async def _candidates(self, group_id: int) -> list[str]:
        """Live stores, those that failed lately last."""
        now_s = self._now_s()
        if not self._alive or now_s - self._located_at_s >= LOCATE_EVERY_S:
            self._located_at_s = now_s
            try:
                self._alive = await self._links.locate()
            except (InfraError, DecodeError):
                self._alive = list(self._outboxes)  # the broker is away, the stores need not be
        ranked = ranked_stores(group_id, self._alive)
        return sorted(ranked, key=lambda store: self._avoid_until_s.get(store, 0.0) > now_s)

    async def _put_into(
        self, store: str, header: RolloutHeader, frames: Sequence[Buffer]
    ) -> Promise:
        outbox = self._outboxes.setdefault(store, _Outbox())
        put = _Put(header, frames, asyncio.get_running_loop().create_future())
        outbox.waiting.append(put)
        self._send_waiting(store, outbox)
        return await put.promise

    def _send_waiting(self, store: str, outbox: _Outbox) -> None:
        while outbox.waiting and outbox.num_in_flight < PUTS_IN_FLIGHT:
            outbox.num_in_flight += 1
            request = asyncio.create_task(self._send(store, outbox, _take(outbox.waiting)))
            self._requests.add(request)
            request.add_done_callback(self._requests.discard)

    async def _send(self, store: str, outbox: _Outbox, puts: Sequence[_Put]) -> None:
        message = PutRollouts(rollouts=tuple(put.header for put in puts))
        frames = [frame for put in puts for frame in put.frames]
        try:
            promise = await self._request(store, message, frames)
        except (InfraError, DecodeError) as error:
            for put in puts:
                if not put.promise.done():
                    put.promise.set_exception(InfraError(str(error)))
        else:
            for put in puts:
                if not put.promise.done():
                    put.promise.set_result(promise)
        finally:
            outbox.num_in_flight -= 1
            self._send_waiting(store, outbox)

    async def _request(self, store: str, message: PutRollouts, frames: Sequence[Buffer]) -> Promise:
        decoded = await self._links.request(store, message, frames, timeout_s=PUT_TIMEOUT_S)
        if not isinstance(decoded.message, Ack):
            raise DecodeError(f"unexpected reply {type(decoded.message).__name__} to PutRollouts")
        return decoded.message.promise

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()


def _take(waiting: list[_Put]) -> list[_Put]:
    """Take from the front what fits into one request, at least one."""
    taken: list[_Put] = []
    num_bytes = 0
    while waiting and (not taken or num_bytes + waiting[0].num_bytes <= REQUEST_BYTES):
        taken.append(waiting.pop(0))
        num_bytes += taken[-1].num_bytes
    return taken
