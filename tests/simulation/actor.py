"""A simulated actor: leases prompts, samples for a heavy-tailed while, submits."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import msgspec
import structlog

from actors.generation.payload_place import InActor, InStore, PayloadPlace, WithBroker
from common.messages import (
    Ack,
    Lease,
    LeasePrompts,
    PromptLeases,
    ReportWeights,
    ReturnLease,
    WatchWeights,
    WeightNotice,
)
from common.metrics import Metrics
from common.payloads.backing import MemoryBacking
from common.payloads.producer import StoreProducer
from common.types import WeightVersion
from tests.builders import rollout_header, version
from tests.simulation.process import Process
from tests.simulation.store import serving
from tests.simulation.told import Submission
from tests.simulation.trace import Violation

_MOST_HELD = 24
_TAIL = 1.3
"""Exponent of the Pareto law of lengths: finite mean, no variance to speak of."""
_LONGEST_S = 40.0
_ROLLOUT_BYTES = 52
_DIRECT_BYTES = 64 * _ROLLOUT_BYTES
"""Room for arrays in one actor: enough for every open group, as the configuration's rule asks."""


class Actor(Process):
    """Survives its own death with the weights that it had: they may be stale by then."""

    serving: WeightVersion | None = None
    collects = False
    _earlier: WeightVersion | None = None

    def __init__(self, *surroundings: Any, **options: Any) -> None:
        super().__init__(*surroundings, **options)
        self.payload_endpoint = f"sim://{self.name}" if self.payloads == "direct" else ""

    def serving_now(self) -> WeightVersion | None:
        """See :meth:`Process.serving_now`."""
        return self.serving

    async def live(self) -> None:
        """See :meth:`Process.live`."""
        if self.collects:
            self.serving = version(0)
        elif self.random.random() < 0.5:
            self.serving = None
        self._sampling: dict[tuple[int, int], asyncio.Task[None]] = {}
        async with AsyncExitStack() as stack:
            self._place = await self._open_place(stack)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            tasks.create_task(self.send_heartbeats())
            tasks.create_task(self._watch_weights())
            await self._lease_prompts(tasks)

    async def _open_place(self, stack: AsyncExitStack) -> PayloadPlace:
        """Where the configuration keeps the rollouts of this life."""
        if self.payloads == "store":
            producer = StoreProducer(self.links)
            stack.push_async_callback(producer.close)
            return InStore(producer)
        if self.payloads == "direct":
            backing = MemoryBacking()
            await stack.enter_async_context(serving(self, backing))
            return InActor(
                backing,
                self,
                actor=self.name,
                max_bytes=_DIRECT_BYTES,
                max_rollout_bytes=_ROLLOUT_BYTES,
                group_size=self.books.rules.group_size,
                metrics=Metrics(),
                log=structlog.stdlib.get_logger(),
            )
        return WithBroker()

    async def _watch_weights(self) -> None:
        while not self.collects:
            known = self.serving
            reply = (await self.ask(WatchWeights(known=known, wait_s=20.0))).message
            assert isinstance(reply, WeightNotice)
            if reply.announcement is None:
                continue
            await self.pause(0.2 + self.random.random())  # pull and prove
            self._earlier = self.serving or reply.announcement.version
            self.serving = reply.announcement.version
            await self.ask(ReportWeights(version=self.serving, proven=True))

    async def _lease_prompts(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            if self.serving is None or len(self._sampling) >= _MOST_HELD:
                await self.pause(0.5)
                continue
            room = await self._place.wait_for_room(lambda: len(self._sampling))
            if not self.collects and self.random.random() < self.behaviour.future_version:
                await self._claim_the_future()
            asked = LeasePrompts(
                serving=self.serving,
                max_groups=min(self.random.randint(1, 3), room),
                wait_s=self.random.uniform(0.5, 10.0),
            )
            reply = (await self.ask(asked)).message
            assert isinstance(reply, PromptLeases)
            serving = self.serving  # what the broker goes by, too: it may be newer than asked
            for item in reply.leases:
                self.books.prompt_leased(item.lease)
                self.hold(item.lease)
                for index in item.lease.indices:
                    key = (item.lease.attempt, index)
                    task = tasks.create_task(self._sample(item.lease, index, serving))
                    self._sampling[key] = task

    async def _claim_the_future(self) -> None:
        """Weights that nobody has published open nothing, unless others are proved meanwhile."""
        before = self.serving
        future = version(10**6, 0 if self.serving is None else self.serving.incarnation)
        reply = await self.ask(LeasePrompts(serving=future, max_groups=1, wait_s=0.5))
        assert isinstance(reply.message, PromptLeases)
        if reply.message.leases and self.serving == before:
            raise Violation("G5", f"prompts were leased to the future version {future}")

    async def _sample(self, lease: Lease, index: int, serving: WeightVersion) -> None:
        try:
            seconds = min(0.3 * self.random.paretovariate(_TAIL), _LONGEST_S)
            await self.work(lease.attempt, seconds)
            if self.random.random() < self.behaviour.give_up:
                await self._return(lease, index)
            else:
                await self._submit(lease, index, serving)
        finally:
            self._sampling.pop((lease.attempt, index), None)
            self.let_go(lease.attempt, index)

    async def _return(self, lease: Lease, index: int) -> None:
        error = "engine error" if self.random.random() < self.behaviour.engine_error else ""
        part = Lease(group_id=lease.group_id, indices=(index,), attempt=lease.attempt)
        if error:
            self.books.error_sent(lease.group_id)
        await self.ask(ReturnLease(lease=part, error=error))

    async def _submit(self, lease: Lease, index: int, serving: WeightVersion) -> None:
        oldest = serving
        if self._earlier is not None and self.random.random() < self.behaviour.stale_tokens:
            oldest = self._earlier
        spans = [(0, oldest)]
        if self.serving is not None and self.serving > serving:
            spans.append((self.random.randint(1, 4), self.serving))
        header = rollout_header(
            group_id=lease.group_id, index=index, attempt=lease.attempt, spans=tuple(spans)
        )
        header = msgspec.structs.replace(
            header, actor=self.name, generation_s=self.random.random()
        )  # no two rollouts are alike
        await self._send(Submission(header, "a"))
        if self.random.random() < self.behaviour.two_contents:
            await self._send(Submission(header, "b"))

    async def _send(self, submission: Submission) -> None:
        self.books.rollout_sent(submission)
        kept = await self._place.keep(submission.header, submission.frames())
        submission = replace(submission, header=kept.message.rollout)
        self.books.rollout_sent(submission)
        reply = await self.ask(kept.message, kept.frames)
        assert isinstance(reply.message, Ack)
        if reply.message.outcome != "accepted":
            self._place.refuse(submission.header.rollout_id)
        self.books.rollout_answered(submission, reply.message.outcome)

    def on_revoked(self, lease: Lease) -> None:
        """Stop sampling what another actor samples, unless stubborn."""
        for index in lease.indices:
            task = self._sampling.get((lease.attempt, index))
            if task is not None and self.random.random() >= self.behaviour.ignore_revocation:
                task.cancel()
