"""A simulated verifier: leases rollouts, judges them, and sometimes fails to."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from common.codec import Buffer
from common.messages import (
    Ack,
    Lease,
    LeaseRollouts,
    RolloutLease,
    RolloutLeases,
    SubmitVerdict,
)
from common.types import ReferenceHeader, StepReward, Verdict, VerdictStatus
from tests.simulation.process import Process
from tests.simulation.references import reference_frame

_WEDGED_S = 90.0


class Verifier(Process):
    """Its verdicts differ from lease to lease, so that each tells where it came from.

    It cannot interrupt what it judges: work on a revoked lease is answered late.
    """

    async def live(self) -> None:
        """See :meth:`Process.live`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.send_heartbeats())
            while True:
                asked = LeaseRollouts(
                    max_rollouts=self.random.randint(1, 8), wait_s=self.random.uniform(0.5, 10.0)
                )
                reply = await self.ask(asked)
                assert isinstance(reply.message, RolloutLeases)
                frames = iter(reply.frames)
                for lease in reply.message.leases:
                    is_here = not lease.rollout.store
                    arrays = list(itertools.islice(frames, 3)) if is_here else None
                    tasks.create_task(self._verify(lease, arrays))
                await self.pause(0.05)

    async def _verify(self, lease: RolloutLease, frames: Sequence[Buffer] | None) -> None:
        rollout_id = lease.rollout.rollout_id
        self.books.rollout_leased(lease)
        if frames is not None:
            self.books.check_content(lease.rollout, frames)
        held = Lease(
            group_id=rollout_id.group_id, indices=(rollout_id.index,), attempt=lease.verify_attempt
        )
        self.hold(held)
        if frames is None and not await self.fetch([lease.rollout]):
            self.let_go(lease.verify_attempt, rollout_id.index)
            return
        is_wedged = self.random.random() < self.behaviour.wedge
        seconds = _WEDGED_S if is_wedged else 0.05 * self.random.paretovariate(1.2)
        await self.work(lease.verify_attempt, seconds)
        verdict = lease.verdict or self._judge(lease)
        reference = self._compute_reference(lease, verdict)
        self.books.verdict_sent(rollout_id, verdict, is_own=lease.verdict is None)
        was_superseded = self.books.is_superseded(rollout_id, lease.verify_attempt)
        epoch = self.books.references.epoch
        message = SubmitVerdict(
            rollout_id=rollout_id,
            verify_attempt=lease.verify_attempt,
            verdict=verdict,
            reference=reference,
        )
        version = None if reference is None else reference.reference_version
        frame = [] if version is None else [reference_frame(lease.rollout, version)]
        reply = (await self.ask(message, frame)).message
        assert isinstance(reply, Ack)
        self.books.verdict_answered(
            rollout_id, verdict, reply.outcome, was_superseded=was_superseded
        )
        if reply.outcome == "accepted" and version is not None:
            self.books.references.accepted(rollout_id, version, epoch)
        self.let_go(lease.verify_attempt, rollout_id.index)

    def _compute_reference(self, lease: RolloutLease, verdict: Verdict) -> ReferenceHeader | None:
        """What was asked for, unless the reference pass fails."""
        fails = self.random.random() < self.behaviour.no_reference
        if lease.reference_version is None or not verdict.status.is_judged or fails:
            return None
        return ReferenceHeader(
            reference_version=lease.reference_version,
            num_tokens=lease.rollout.num_completion_tokens,
        )

    def _judge(self, lease: RolloutLease) -> Verdict:
        chance = self.random.random()
        if self.behaviour.is_poison(lease.rollout.rollout_id.group_id):
            chance = 0.0 if chance < 0.9 else 1.0
            infra_error = 0.5
        else:
            infra_error = self.behaviour.infra_error
        if self.is_forgotten(lease.verify_attempt):
            infra_error = 0.5  # what outlasts a lease seldom ends well
        if chance < infra_error:
            return Verdict(status=VerdictStatus.INFRA_ERROR, reward=None, reason="child died")
        if chance < infra_error + self.behaviour.bad_input:
            return Verdict(status=VerdictStatus.BAD_INPUT, reward=None, reason="no gold")
        attempt = lease.verify_attempt
        is_coin = self.books.rules.dynamic_sampling
        reward = float(self.random.randrange(2) if is_coin else attempt)
        return Verdict(
            status=VerdictStatus.GRADED,
            reward=reward,
            reason=f"lease {attempt}",
            steps=(StepReward(end=attempt, value=reward),),
        )
