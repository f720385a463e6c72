"""The verifier role: lease rollouts, judge each in the pool, submit typed verdicts.

Credit bounds everything: the worker asks for as many rollouts as it can judge soon, holds a lease
for each until its verdict is durable, and names them in every heartbeat. What it still holds when
it stops it gives back, so another verifier has it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from actors.verification.child import ChildLimits
from actors.verification.pool import VerifierPool
from actors.verification.reward import check_rewards, compose_verdict, plan_job
from common.arrays import arrays_from_frames
from common.codec import Buffer, Decoded
from common.config import RewardWeight
from common.endpoints import read_endpoint
from common.errors import DataError, DecodeError, InfraError, RefusedError
from common.lifecycle import Process
from common.messages import (
    Heartbeat,
    HeartbeatReply,
    Lease,
    LeaseRollouts,
    Request,
    ReturnLease,
    RolloutLease,
    RolloutLeases,
    SubmitVerdict,
)
from common.metrics import Metrics
from common.payloads.client import PayloadClient, Wanted
from common.payloads.wiring import payload_client
from common.security import client_security
from common.text_tokenizer import TextTokenizer
from common.transport import Channel
from common.types import Prompt, Role, RolloutId, Verdict

LEASE_WAIT_S = 2.0
"""How long the broker may hold a request for work; a stopping worker waits for the answer."""

HELD_S = 0.5
"""Work held ahead, in seconds: enough to cover a durable answer of the broker, and little enough
that another verifier does not stand idle beside a queue."""

_FIRST_CREDIT_PER_CHILD = 8
_MAX_CREDIT_PER_CHILD = 256
_RETRY_S = 0.5
_HEARTBEAT_TIMEOUT_S = 10.0
_MEAN_DECAY = 0.95


class Requester(Protocol):
    """What the worker needs of :class:`common.transport.Channel`."""

    async def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        """Send ``message`` and return the reply."""
        ...


def target_held(num_children: int, mean_verify_s: float | None) -> int:
    """Rollouts to hold so that ``num_children`` are busy for :data:`HELD_S`.

    ``mean_verify_s`` is the recent mean wall time of a verification, None before the first. At
    least two a child: one is judged while the next waits.
    """
    if mean_verify_s is None:
        return num_children * _FIRST_CREDIT_PER_CHILD
    wanted = int(HELD_S / max(mean_verify_s, 1e-6))
    return num_children * min(max(wanted, 2), _MAX_CREDIT_PER_CHILD)


class VerifierWorker:
    """The loop of one verifier; :meth:`run` returns only by cancellation."""

    def __init__(
        self,
        channel: Requester,
        pool: VerifierPool,
        tokenizer: TextTokenizer,
        rewards: Sequence[RewardWeight],
        *,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
        heartbeat_s: float,
        payloads: PayloadClient | None = None,
    ) -> None:
        """``payloads`` fetches what is not with the broker; None where everything is."""
        self._channel = channel
        self._payloads = payloads
        self._pool = pool
        self._tokenizer = tokenizer
        self._rewards = tuple(rewards)
        self._metrics = metrics
        self._log = log
        self._heartbeat_s = heartbeat_s
        self._held: dict[RolloutId, int] = {}
        self._released = asyncio.Event()
        self._mean_verify_s: float | None = None
        self._num_restarts = 0

    async def run(self) -> None:
        """Verify until cancelled, then give back what is still held."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send_heartbeats(), name="heartbeat")
                group.create_task(self._lease_rollouts(group), name="lease-rollouts")
        finally:
            await self._return_leases()

    async def _lease_rollouts(self, group: asyncio.TaskGroup) -> None:
        while True:
            credit = await self._wait_for_credit()
            try:
                reply = await self._ask_for_rollouts(credit)
                leases = _leases_in(reply)
            except RefusedError as error:
                await self._wait_out(error)
                continue
            except (InfraError, DecodeError) as error:
                self._log.warning("no work from the broker", error=str(error))
                await asyncio.sleep(_RETRY_S)
                continue
            position = 0
            for lease in leases:
                self._held[lease.rollout.rollout_id] = lease.verify_attempt
                frames: Sequence[memoryview] | None = None
                if not lease.rollout.store:
                    frames = reply.frames[position : position + 3]
                    position += 3
                group.create_task(self._verify(lease, frames), name="verify")

    async def _wait_out(self, refusal: RefusedError) -> None:
        """A run that has ended may go on later; until then asking rarely and silently is enough."""
        if refusal.code == "sealed":
            await asyncio.sleep(LEASE_WAIT_S)
        else:
            self._log.warning("no work from the broker", error=str(refusal))
            await asyncio.sleep(_RETRY_S)

    async def _wait_for_credit(self) -> int:
        """Wait until at least a quarter of the target is free, so requests stay few."""
        while True:
            target = target_held(self._pool.num_workers, self._mean_verify_s)
            credit = target - len(self._held)
            if credit >= max(1, target // 4):
                return credit
            self._released.clear()
            await self._released.wait()

    async def _ask_for_rollouts(self, credit: int) -> Decoded:
        """One request for work. Cancelled, it waits for the answer, so no lease is forgotten."""
        clock = asyncio.get_running_loop().time
        started_s, was_idle = clock(), not self._held
        message = LeaseRollouts(max_rollouts=credit, wait_s=LEASE_WAIT_S)
        request = asyncio.ensure_future(self._channel.request(message))
        try:
            reply = await asyncio.shield(request)
        except asyncio.CancelledError:
            await self._keep_late_leases(request)
            raise
        if was_idle:
            self._metrics.inc("headrace_idle_seconds_total", clock() - started_s, stage="verify")
        return reply

    async def _keep_late_leases(self, request: asyncio.Future[Decoded]) -> None:
        await asyncio.wait({request}, timeout=LEASE_WAIT_S + 1.0)
        if not request.done():
            request.cancel()
        elif request.exception() is None:
            for lease in _leases_in(request.result()):
                self._held[lease.rollout.rollout_id] = lease.verify_attempt

    async def _verify(self, lease: RolloutLease, frames: Sequence[memoryview] | None) -> None:
        rollout_id = lease.rollout.rollout_id
        try:
            frames = frames or await self._fetch(lease)
            if frames is None:
                self._release(rollout_id)  # lost, and reported: the lease has ended
                return
            token_ids = arrays_from_frames(frames).completion_token_ids.tolist()
            verdict = await self._judge(lease.prompt, self._tokenizer.decode(token_ids))
            answer: Request = SubmitVerdict(
                rollout_id=rollout_id, verify_attempt=lease.verify_attempt, verdict=verdict
            )
        except InfraError as error:
            self._log.warning("arrays not fetched, lease returned", error=str(error))
            answer = ReturnLease(lease=_lease_of(rollout_id, lease.verify_attempt))
        except DataError as error:  # a rollout that nobody can read must end in the dead letter
            answer = ReturnLease(
                lease=_lease_of(rollout_id, lease.verify_attempt), error=str(error)
            )
        if self._held.get(rollout_id) != lease.verify_attempt:
            return  # revoked meanwhile: somebody else's verdict counts
        try:
            await self._channel.request(answer)
        except (InfraError, DecodeError) as error:
            self._log.warning("answer not taken, lease dropped", error=str(error))
        self._release(rollout_id)

    async def _fetch(self, lease: RolloutLease) -> Sequence[memoryview] | None:
        """The arrays of a rollout that is not with the broker; None when they are lost.

        Raises :class:`DataError` where this verifier was not told of stores.
        """
        if self._payloads is None:
            raise DataError(f"the arrays are in store {lease.rollout.store!r}, none is known here")
        (fetched,) = await self._payloads.fetch([Wanted.of(lease.rollout)])
        return None if fetched is None else fetched.frames

    async def _judge(self, prompt: Prompt, completion: str) -> Verdict:
        job = plan_job(completion, prompt.task, prompt.reference_json, self._rewards)
        reply = await self._pool.judge(job)
        verdict = compose_verdict(self._rewards, reply)
        self._record(verdict, reply.seconds)
        return verdict

    def _record(self, verdict: Verdict, seconds: float) -> None:
        previous = self._mean_verify_s
        self._mean_verify_s = (
            seconds if previous is None else _MEAN_DECAY * previous + (1 - _MEAN_DECAY) * seconds
        )
        self._metrics.inc("headrace_verdicts_total", status=verdict.status.value)
        self._metrics.observe("headrace_verify_seconds", seconds)
        self._metrics.inc("headrace_busy_seconds_total", seconds, stage="verify")
        restarts, self._num_restarts = self._num_restarts, self._pool.num_restarts
        self._metrics.inc("headrace_verifier_restarts_total", self._num_restarts - restarts)
        if not verdict.status.is_judged:
            self._log.warning("not judged", status=verdict.status.value, reason=verdict.reason)

    def _release(self, rollout_id: RolloutId) -> None:
        self._held.pop(rollout_id, None)
        self._released.set()

    async def _send_heartbeats(self) -> None:
        """Renew the leases that are held; forget those that the broker has given to others."""
        while True:
            try:
                reply = await self._channel.request(
                    Heartbeat(leases=self._held_leases()), timeout_s=_HEARTBEAT_TIMEOUT_S
                )
            except (InfraError, DecodeError) as error:
                self._log.warning("heartbeat not answered", error=str(error))
            else:
                self._drop_revoked(reply)
            await asyncio.sleep(self._heartbeat_s)

    def _drop_revoked(self, reply: Decoded) -> None:
        if not isinstance(reply.message, HeartbeatReply):
            return
        revoked = {
            (lease.group_id, index, lease.attempt)
            for lease in reply.message.revoked
            for index in lease.indices
        }
        for rollout_id, attempt in list(self._held.items()):
            if (rollout_id.group_id, rollout_id.index, attempt) in revoked:
                self._release(rollout_id)

    def _held_leases(self) -> tuple[Lease, ...]:
        return tuple(_lease_of(rollout_id, attempt) for rollout_id, attempt in self._held.items())

    async def _return_leases(self) -> None:
        """Give every held rollout back, without counting it as an error."""
        returns = [
            self._channel.request(ReturnLease(lease=lease), timeout_s=LEASE_WAIT_S)
            for lease in self._held_leases()
        ]
        self._held.clear()
        failures = [
            outcome
            for outcome in await asyncio.gather(*returns, return_exceptions=True)
            if isinstance(outcome, BaseException)
        ]
        if failures:
            self._log.warning("leases not returned", count=len(failures), error=str(failures[0]))


async def serve(process: Process) -> None:
    """Run one verifier until its process is stopped."""
    config = process.config
    check_rewards(config.verifier.rewards)
    tokenizer = TextTokenizer.load(config.model.path)
    limits = ChildLimits(config.verifier.wall_limit_s, config.verifier.memory_limit_bytes)
    async with VerifierPool(limits, config.verifier.num_workers) as pool:
        channel = await Channel.connect(
            role=Role.VERIFIER,
            name=process.name,
            endpoint=read_endpoint(config, process.paths),
            security=client_security(config, Role.VERIFIER, process.name),
        )
        payloads = payload_client(config, channel, Role.VERIFIER, process.name)
        try:
            worker = VerifierWorker(
                channel,
                pool,
                tokenizer,
                config.verifier.rewards,
                metrics=process.metrics,
                log=process.log,
                heartbeat_s=channel.registered.heartbeat_s,
                payloads=payloads,
            )
            process.ready(num_children=config.verifier.num_workers)
            await worker.run()
        finally:
            await payloads.close()
            await channel.close()


def _leases_in(reply: Decoded) -> tuple[RolloutLease, ...]:
    if not isinstance(reply.message, RolloutLeases):
        raise DecodeError(f"unexpected reply {type(reply.message).__name__} to LeaseRollouts")
    return reply.message.leases


def _lease_of(rollout_id: RolloutId, verify_attempt: int) -> Lease:
    return Lease(group_id=rollout_id.group_id, indices=(rollout_id.index,), attempt=verify_attempt)
