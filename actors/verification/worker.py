"""The verifier role: lease rollouts, judge each in the pool, submit typed verdicts.

Credit bounds everything: the worker asks for as many rollouts as it can judge soon, holds a lease
for each until its verdict is durable, and names them in every heartbeat. What it still holds when
it stops it gives back, so another verifier has it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from actors.verification.credit import target_held
from actors.verification.grading import Grader, RolloutReference
from actors.verification.held_leases import HeldLeases, lease_of
from actors.verification.rollout_judge import RolloutJudge
from common.arrays import arrays_from_frames
from common.codec import Buffer, Decoded, frames_of_each
from common.errors import DataError, DecodeError, InfraError, RefusedError
from common.messages import (
    Heartbeat,
    HeartbeatReply,
    LeaseRollouts,
    Request,
    ReturnLease,
    RolloutLease,
    RolloutLeases,
    SubmitVerdict,
)
from common.metrics import Metrics
from common.payloads.client import Fetched, Requester, Wanted

LEASE_WAIT_S = 2.0
"""How long the broker may hold a request for work; a stopping worker waits for the answer."""

_MAX_LEASES = 1024
_RETRY_S = 0.5
_HEARTBEAT_TIMEOUT_S = 10.0


class Fetcher(Protocol):
    """What the worker needs of :class:`common.payloads.client.PayloadClient`."""

    async def fetch(self, wanted: Sequence[Wanted]) -> list[Fetched | None]:
        """Each rollout in order; None for one that is lost."""
        ...


class VerifierWorker:
    """The loop of one verifier; :meth:`run` returns only by cancellation."""

    def __init__(
        self,
        channel: Requester,
        judge: RolloutJudge,
        *,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
        heartbeat_s: float,
        payloads: Fetcher | None = None,
        reference: RolloutReference | None = None,
        on_pause: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """``payloads`` fetches what is not with the broker; None where everything is.

        ``reference`` computes log-probabilities of the reference policy; None: the learner does.

        ``on_pause`` is told why when the worker stops taking work for good.
        """
        self._channel = channel
        self._payloads = payloads
        self._judge = judge
        self._grader = Grader(judge.judge, reference, log)
        judge.on_hacking = self._pause
        self._metrics = metrics
        self._log = log
        self._on_pause = on_pause
        self._is_paused = False
        self._heartbeat_s = heartbeat_s
        self._held = HeldLeases(metrics)

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
            self._held.add(leases)
            if self._is_paused:  # asked for before the pause
                await self._return(leases)
                continue
            by_store = _by_store(leases)
            held = by_store.pop("", ())
            own_frames = frames_of_each([lease.rollout for lease in held], reply.frames)
            for lease, frames in zip(held, own_frames, strict=True):
                group.create_task(self._verify(lease, frames), name="verify")
            for part in by_store.values():
                group.create_task(self._fetch_and_verify(part, group), name="fetch")

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
            target = target_held(self._judge.num_workers, self._judge.mean_seconds)
            credit = target - len(self._held)
            if credit >= max(1, target // 4) and not self._is_paused:
                return credit
            await self._held.wait_for_release()

    async def _ask_for_rollouts(self, credit: int) -> Decoded:
        """One request for work. Cancelled, it waits for the answer, so no lease is forgotten."""
        clock = asyncio.get_running_loop().time
        started_s, was_idle = clock(), not self._held
        max_rollouts = min(credit, _MAX_LEASES)
        message = LeaseRollouts(max_rollouts=max_rollouts, wait_s=LEASE_WAIT_S)
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
            self._held.add(_leases_in(request.result()))

    async def _fetch_and_verify(
        self, leases: Sequence[RolloutLease], group: asyncio.TaskGroup
    ) -> None:
        """Fetch the arrays of ``leases``, all in one store, at once; then verify each by itself."""
        try:
            fetched = await self._fetch(leases)
        except InfraError as error:
            self._log.warning("arrays not fetched, leases returned", error=str(error))
            await self._return(leases)
            return
        except DataError as error:
            await self._return(leases, str(error))
            return
        for lease, arrays in zip(leases, fetched, strict=True):
            if arrays is None:
                self._held.release(lease.rollout.rollout_id)  # lost, and reported
            else:
                group.create_task(self._verify(lease, arrays.frames), name="verify")

    async def _fetch(self, leases: Sequence[RolloutLease]) -> Sequence[Fetched | None]:
        """The arrays of rollouts that are not with the broker; None where they are lost.

        Raises :class:`DataError` where this verifier was not told of stores.
        """
        if self._payloads is None:
            store = leases[0].rollout.store
            raise DataError(f"the arrays are in store {store!r}, none is known here")
        return await self._payloads.fetch([Wanted.of(lease.rollout) for lease in leases])

    async def _verify(self, lease: RolloutLease, frames: Sequence[memoryview]) -> None:
        try:
            graded = await self._grader.grade(lease, arrays_from_frames(frames))
        except (InfraError, DataError) as error:  # in the end the dead letter says so
            await self._answer(lease, ReturnLease(lease=lease_of(lease), error=str(error)))
            return
        reference = graded.reference
        verdict = SubmitVerdict(
            rollout_id=lease.rollout.rollout_id,
            verify_attempt=lease.verify_attempt,
            verdict=graded.verdict,
            reference=None if reference is None else reference.header,
        )
        await self._answer(lease, verdict, [] if reference is None else [reference.frame()])

    async def _return(self, leases: Sequence[RolloutLease], error: str = "") -> None:
        await asyncio.gather(
            *(
                self._answer(lease, ReturnLease(lease=lease_of(lease), error=error))
                for lease in leases
            )
        )

    async def _answer(
        self, lease: RolloutLease, answer: Request, frames: Sequence[Buffer] = ()
    ) -> None:
        """End ``lease`` with ``answer``, unless somebody else's answer counts by now."""
        if lease not in self._held:
            return  # revoked meanwhile
        try:
            await self._channel.request(answer, frames)
        except (InfraError, DecodeError) as error:
            self._log.warning("answer not taken, lease dropped", error=str(error))
        self._held.release(lease.rollout.rollout_id)

    def _pause(self, reason: str) -> None:
        """Take no more work; what is held is answered, and heartbeats go on."""
        if not self._is_paused:
            self._is_paused = True
            self._metrics.set("headrace_verifier_paused", 1)
            self._on_pause(
                f"reward hacking suspected, {reason} (look at the answers; restart the "
                "verifier to go on, or set verifier.monitor.action)"
            )

    async def _send_heartbeats(self) -> None:
        """Renew the leases that are held; forget those that the broker has given to others."""
        while True:
            try:
                reply = await self._channel.request(
                    Heartbeat(leases=self._held.leases()), timeout_s=_HEARTBEAT_TIMEOUT_S
                )
            except (InfraError, DecodeError) as error:
                self._log.warning("heartbeat not answered", error=str(error))
            else:
                if isinstance(reply.message, HeartbeatReply):
                    self._held.drop(reply.message.revoked)
            await asyncio.sleep(self._heartbeat_s)

    async def _return_leases(self) -> None:
        """Give every held rollout back, without counting it as an error."""
        returns = [
            self._channel.request(ReturnLease(lease=lease), timeout_s=LEASE_WAIT_S)
            for lease in self._held.leases()
        ]
        self._held.clear()
        failures = [
            outcome
            for outcome in await asyncio.gather(*returns, return_exceptions=True)
            if isinstance(outcome, BaseException)
        ]
        if failures:
            self._log.warning("leases not returned", count=len(failures), error=str(failures[0]))


def _leases_in(reply: Decoded) -> tuple[RolloutLease, ...]:
    if not isinstance(reply.message, RolloutLeases):
        raise DecodeError(f"unexpected reply {type(reply.message).__name__} to LeaseRollouts")
    return reply.message.leases


def _by_store(leases: Sequence[RolloutLease]) -> dict[str, list[RolloutLease]]:
    """Leases by the store of their arrays, in order: a store that is away holds up no other."""
    parts: dict[str, list[RolloutLease]] = {}
    for lease in leases:
        parts.setdefault(lease.rollout.store, []).append(lease)
    return parts
