"""Leases prompts, has them sampled, streams each rollout as it finishes (hop: prompt -> rollout).

Waits for: room in the engine, then prompts from the broker, then completions. A rollout is kept
until the broker has confirmed it, across broker restarts; what the broker no longer wants from this
actor is aborted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from actors.generation.engine_thread import EngineThread
from actors.generation.lease_book import LeaseBook, SamplingJob
from actors.generation.payload_place import PayloadPlace, Submission
from actors.generation.sampler import RecordedExperts, SampledCompletion, SampleRequest
from actors.generation.weight_watch import Serving
from common.arrays import RolloutArrays, frame_of_experts
from common.codec import Buffer, Decoded
from common.errors import DataError, RefusedError, RequestTimeoutError
from common.messages import (
    Ack,
    Heartbeat,
    HeartbeatReply,
    Lease,
    LeasePrompts,
    PromptLease,
    PromptLeases,
    ReturnLease,
)
from common.metrics import Metrics
from common.transport import Channel
from common.types import FinishReason, Prompt, RolloutHeader, RolloutId, RoutingHeader

LEASE_WAIT_S = 10.0
MAX_SUBMITS = 64
_RETRY_S = 0.5
_LATE_S = 0.2
_MAX_ERROR = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingSettings:
    """What all completions of a run have in common."""

    actor: str
    max_tokens: int
    temperature: float
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _FinishedRollout:
    """What goes over the wire, kept until it is confirmed."""

    header: RolloutHeader
    frames: Sequence[Buffer]


class RolloutStream:
    """The traffic in prompts and rollouts of one actor.

    ``encode`` turns a prompt into token ids and raises ``DataError`` for one that does not fit.
    """

    def __init__(
        self,
        *,
        channel: Channel,
        engine: EngineThread,
        serving: Serving,
        book: LeaseBook,
        encode: Callable[[Prompt], Sequence[int]],
        settings: SamplingSettings,
        place: PayloadPlace,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._channel = channel
        self._place = place
        self._engine = engine
        self._serving = serving
        self._book = book
        self._encode = encode
        self._settings = settings
        self._metrics = metrics
        self._log = log
        self._unsent: dict[RolloutId, _FinishedRollout] = {}
        self._finished: asyncio.Queue[SampledCompletion] = asyncio.Queue()
        self._has_room = asyncio.Event()
        self._submits = asyncio.Semaphore(MAX_SUBMITS)
        self._last_refusal = ""
        self._asking: asyncio.Future[Decoded] | None = None

    def on_completion(self, completion: SampledCompletion) -> None:
        """Take a completion of the engine; call it on the event loop."""
        self._finished.put_nowait(completion)

    async def lease_forever(self) -> None:
        """Keep the engine full of prompts."""
        while True:
            await self._serving.wait_proven()
            room_groups = await self._wait_for_room()
            leases = await self._lease(room_groups)
            await asyncio.gather(*(self._sample(lease) for lease in leases))
            self._asking = None

    async def submit_forever(self) -> None:
        """Send each rollout when it is finished, many at once."""
        async with asyncio.TaskGroup() as submits:
            while True:
                completion = await self._finished.get()
                self._has_room.set()
                job = self._book.finish(completion.request_id)
                if job is None:
                    continue
                if completion.finish_reason == "abort":
                    submits.create_task(self._give_up(job), name="give-up")
                else:
                    self._keep(job, completion)
                    await self._submits.acquire()
                    submits.create_task(self._submit(job.rollout_id), name="submit")

    async def heartbeat_forever(self) -> None:
        """Renew what is held; abort what the broker revokes."""
        while True:
            await self.heartbeat()
            await asyncio.sleep(self._channel.registered.heartbeat_s)

    async def heartbeat(self) -> None:
        """Send one sign of life and obey the answer."""
        message = Heartbeat(leases=self._book.held_leases(), serving=self._serving.version)
        try:
            reply = (await self._channel.request(message, timeout_s=10.0)).message
        except (RequestTimeoutError, RefusedError) as error:
            self._log.warning("no heartbeat", error=str(error))
            return
        if isinstance(reply, HeartbeatReply):
            for lease in reply.revoked:
                self._drop(lease)

    async def give_back(self) -> None:
        """At the end: send what is finished, return what is not.

        The broker may answer the last request for prompts with the very work that was returned.
        """
        finished = [self._send(rollout_id) for rollout_id in list(self._unsent)]
        unfinished = self._book.unfinished_leases()
        for lease in unfinished:
            self._drop(lease)
        await asyncio.gather(*finished, *(self._return_lease(lease) for lease in unfinished))
        late = await self._late_leases()
        await asyncio.gather(*(self._return_lease(item.lease) for item in late))

    async def _late_leases(self) -> Sequence[PromptLease]:
        if self._asking is None:
            return ()
        await asyncio.wait({self._asking}, timeout=_LATE_S)
        answered = self._asking.done() and not self._asking.cancelled()
        if not answered or self._asking.exception() is not None:
            self._asking.cancel()
            return ()
        reply = self._asking.result().message
        return reply.leases if isinstance(reply, PromptLeases) else ()

    async def _lease(self, max_groups: int) -> Sequence[PromptLease]:
        serving = self._serving.version
        if serving is None:
            return ()
        message = LeasePrompts(serving=serving, max_groups=max_groups, wait_s=LEASE_WAIT_S)
        self._asking = asyncio.ensure_future(self._channel.request(message))
        try:
            reply = (await asyncio.shield(self._asking)).message
        except RequestTimeoutError:
            return ()
        except RefusedError as error:
            if error.code != self._last_refusal:
                self._log.warning("no more leases", code=error.code, reason=error.reason)
            self._last_refusal = error.code
            await asyncio.sleep(_RETRY_S)
            return ()
        self._last_refusal = ""
        return reply.leases if isinstance(reply, PromptLeases) else ()

    async def _wait_for_room(self) -> int:
        kept_groups = await self._place.wait_for_room(self._num_unfinished)
        while not self._book.room_groups:
            self._has_room.clear()
            await self._has_room.wait()
        return min(self._book.room_groups, kept_groups)

    def _num_unfinished(self) -> int:
        """Rollouts whose arrays are yet to be kept, at most."""
        return self._book.num_sampling + self._book.num_unacknowledged

    async def _sample(self, prompt_lease: PromptLease) -> None:
        """Book a lease and hand it to the engine; one that cannot be sampled goes back."""
        now_s = asyncio.get_running_loop().time()
        try:
            jobs = self._book.take(prompt_lease, self._encode(prompt_lease.prompt), now_s)
            if jobs:
                await asyncio.wrap_future(self._engine.submit([self._request(job) for job in jobs]))
        except DataError as error:
            self._log.warning("prompt cannot be sampled", error=str(error))
            self._book.drop(prompt_lease.lease)
            await self._return_lease(prompt_lease.lease, str(error))

    def _request(self, job: SamplingJob) -> SampleRequest:
        # Without a salt of its own the engine salts with the version that serves when the prompt
        # enters it, which is the one that fills the cache.
        return SampleRequest(
            request_id=job.request_id,
            prompt_token_ids=job.prompt_token_ids,
            max_tokens=self._settings.max_tokens,
            temperature=self._settings.temperature,
            stop_token_ids=self._settings.stop_token_ids,
        )

    def _keep(self, job: SamplingJob, completion: SampledCompletion) -> None:
        generation_s = asyncio.get_running_loop().time() - job.began_s
        self._unsent[job.rollout_id] = _finished_rollout(
            job, completion, self._settings, generation_s
        )
        self._metrics.inc("headrace_generated_tokens_total", len(completion.token_ids))
        self._metrics.inc("headrace_rollouts_total", finish=completion.finish_reason)

    async def _submit(self, rollout_id: RolloutId) -> None:
        try:
            await self._send(rollout_id)
        finally:
            self._submits.release()

    async def _send(self, rollout_id: RolloutId) -> None:
        """Send until the broker answers; it treats a repeated submission as the same one."""
        submission: Submission | None = None
        while (rollout := self._unsent.get(rollout_id)) is not None:
            if submission is None:
                submission = await self._place.keep(rollout.header, rollout.frames)
            outcome = "refused"
            try:
                reply = await self._channel.request(submission.message, submission.frames)
                outcome = reply.message.outcome if isinstance(reply.message, Ack) else "unknown"
            except RequestTimeoutError:
                continue
            except RefusedError as error:
                self._log.warning("broker refused a rollout", code=error.code, reason=error.reason)
            if outcome != "accepted":
                self._place.refuse(rollout_id)
            self._unsent.pop(rollout_id, None)
            self._book.acknowledge(rollout_id)

    async def _give_up(self, job: SamplingJob) -> None:
        self._book.acknowledge(job.rollout_id)
        lease = Lease(
            group_id=job.rollout_id.group_id,
            indices=(job.rollout_id.index,),
            attempt=job.rollout_id.attempt,
        )
        await self._return_lease(lease, "the engine gave the request up")

    def _drop(self, lease: Lease) -> None:
        request_ids = self._book.drop(lease)
        if request_ids:
            self._engine.abort(request_ids)
            self._has_room.set()

    async def _return_lease(self, lease: Lease, error: str = "") -> None:
        try:
            await self._channel.request(ReturnLease(lease=lease, error=error[:_MAX_ERROR]))
        except (RequestTimeoutError, RefusedError) as problem:
            self._log.warning("lease not returned; it will expire", error=str(problem))


def _finished_rollout(
    job: SamplingJob,
    completion: SampledCompletion,
    settings: SamplingSettings,
    generation_s: float,
) -> _FinishedRollout:
    header = RolloutHeader(
        rollout_id=job.rollout_id,
        num_prompt_tokens=len(job.prompt_token_ids),
        num_completion_tokens=len(completion.token_ids),
        finish_reason=FinishReason(completion.finish_reason),
        temperature=settings.temperature,
        version_spans=completion.version_spans,
        actor=settings.actor,
        generation_s=generation_s,
        routing=_routing_header(completion.routing),
    )
    arrays = RolloutArrays(
        np.asarray(job.prompt_token_ids, np.int32),
        completion.token_ids,
        completion.behavior_logprobs,
    )
    frames = arrays.frames()
    if completion.routing is not None:
        frames.append(frame_of_experts(completion.routing.experts))
    return _FinishedRollout(header, frames)


def _routing_header(recorded: RecordedExperts | None) -> RoutingHeader | None:
    if recorded is None:
        return None
    num_tokens, num_layers, top_k = recorded.experts.shape
    return RoutingHeader(
        start=recorded.start,
        num_tokens=num_tokens,
        num_layers=num_layers,
        top_k=top_k,
        num_experts=recorded.num_experts,
    )
