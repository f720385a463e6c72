"""Where this actor's rollouts wait for their consumers: with the broker, in a store, or right here.

The broker's ledger learns of each rollout in any case. A rollout that is kept here is in the memory
of this process and dies with it; the broker then has it sampled again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import structlog

from common.codec import Buffer
from common.content_hash import content_hash
from common.errors import DecodeError, InfraError
from common.messages import SubmitRollout
from common.metrics import Metrics
from common.payloads.backing import MemoryBacking
from common.payloads.client import Requester
from common.payloads.producer import StoreProducer
from common.payloads.sweeping import drop_ended
from common.types import RolloutHeader, RolloutId

UNLIMITED_GROUPS = 1 << 20
_RECHECK_S = 0.2


@dataclass(frozen=True, slots=True)
class Submission:
    """What the broker is sent of a finished rollout."""

    message: SubmitRollout
    frames: Sequence[Buffer] = ()


class PayloadPlace(Protocol):
    """Keeps the arrays of finished rollouts."""

    async def keep(self, header: RolloutHeader, frames: Sequence[Buffer]) -> Submission:
        """Keep one rollout, however long that takes; returns what to tell the broker."""
        ...

    def refuse(self, rollout_id: RolloutId) -> None:
        """The broker has no use for this rollout."""
        ...

    async def wait_for_room(self, num_unfinished: Callable[[], int]) -> int:
        """Wait until a group fits beside unfinished rollouts; returns how many groups do."""
        ...


class WithBroker:
    """The broker takes the arrays as well."""

    async def keep(self, header: RolloutHeader, frames: Sequence[Buffer]) -> Submission:
        """The arrays travel with the submission."""
        return Submission(SubmitRollout(rollout=header), frames)

    def refuse(self, rollout_id: RolloutId) -> None:
        """The broker has dropped it."""

    async def wait_for_room(self, num_unfinished: Callable[[], int]) -> int:
        """The broker says by itself how much it takes."""
        return UNLIMITED_GROUPS


class InStore:
    """A store takes the arrays."""

    def __init__(self, producer: StoreProducer) -> None:
        self._producer = producer

    async def keep(self, header: RolloutHeader, frames: Sequence[Buffer]) -> Submission:
        """Return once a store has promised to keep it."""
        store, _ = await self._producer.put(header, frames)
        return _elsewhere(header, frames, store)

    def refuse(self, rollout_id: RolloutId) -> None:
        """The store learns it when the group has ended."""

    async def wait_for_room(self, num_unfinished: Callable[[], int]) -> int:
        """Puts wait for stores that have room."""
        return UNLIMITED_GROUPS


class InActor:
    """This process keeps the arrays, up to ``max_bytes``.

    Room is taken for whole groups of the longest rollouts before they are sampled, so the bound
    holds at every moment. Without room sampling waits, and what would only serve a replay is given
    up.
    """

    def __init__(
        self,
        backing: MemoryBacking,
        broker: Requester,
        *,
        actor: str,
        max_bytes: int,
        max_rollout_bytes: int,
        group_size: int,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._backing = backing
        self._broker = broker
        self._actor = actor
        self._max_bytes = max_bytes
        self._max_rollout_bytes = max_rollout_bytes
        self._group_size = group_size
        self._metrics = metrics
        self._log = log

    async def keep(self, header: RolloutHeader, frames: Sequence[Buffer]) -> Submission:
        """Nothing leaves this process."""
        self._backing.add(header, frames)
        return _elsewhere(header, frames, self._actor)

    def refuse(self, rollout_id: RolloutId) -> None:
        """Its memory is free at once."""
        self._backing.forget(rollout_id)

    def room_groups(self, num_unfinished: int) -> int:
        """Groups that fit beside what is held and ``num_unfinished`` more rollouts."""
        taken = self._backing.num_bytes + num_unfinished * self._max_rollout_bytes
        group_bytes = self._group_size * self._max_rollout_bytes
        return max(0, self._max_bytes - taken) // group_bytes

    async def wait_for_room(self, num_unfinished: Callable[[], int]) -> int:
        """Wait for groups to end; logs and counts for how long."""
        clock = asyncio.get_running_loop().time
        began_s, is_blocked = clock(), False
        while not (room := self.room_groups(num_unfinished())):
            if not is_blocked:
                self._log.warning("sampling waits for memory", held=self._backing.num_bytes)
            is_blocked = True
            with contextlib.suppress(InfraError, DecodeError):
                await drop_ended(self._broker, self._backing, stepped=True)
            if not self.room_groups(num_unfinished()):
                await asyncio.sleep(_RECHECK_S)
        if is_blocked:
            waited_s = clock() - began_s
            self._metrics.inc("headrace_payload_blocked_seconds_total", waited_s)
            self._log.info("sampling goes on", waited_s=round(waited_s, 3))
        return room


def _elsewhere(header: RolloutHeader, frames: Sequence[Buffer], store: str) -> Submission:
    return Submission(
        SubmitRollout(
            rollout=msgspec.structs.replace(header, store=store),
            content_hash=content_hash(header, frames),
        )
    )
