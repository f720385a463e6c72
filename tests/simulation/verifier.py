"""A simulated verifier: leases rollouts, judges them, and sometimes fails to."""

from __future__ import annotations

import asyncio
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
from common.types import Verdict, VerdictStatus
from tests.simulation.process import Process

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
                for place, lease in enumerate(reply.message.leases):
                    frames = reply.frames[3 * place : 3 * place + 3]
                    tasks.create_task(self._verify(lease, frames))
                await self.pause(0.05)

    async def _verify(self, lease: RolloutLease, frames: Sequence[Buffer]) -> None:
        rollout_id = lease.rollout.rollout_id
        self.books.rollout_leased(lease, frames)
        held = Lease(
            group_id=rollout_id.group_id, indices=(rollout_id.index,), attempt=lease.verify_attempt
        )
        self.hold(held)
        is_wedged = self.random.random() < self.behaviour.wedge
        seconds = _WEDGED_S if is_wedged else 0.05 * self.random.paretovariate(1.2)
        await self.work(lease.verify_attempt, seconds)
        verdict = self._judge(lease)
        self.books.verdict_sent(rollout_id, verdict)
        was_superseded = self.books.is_superseded(rollout_id, lease.verify_attempt)
        message = SubmitVerdict(
            rollout_id=rollout_id, verify_attempt=lease.verify_attempt, verdict=verdict
        )
        reply = (await self.ask(message)).message
        assert isinstance(reply, Ack)
        self.books.verdict_answered(
            rollout_id, verdict, reply.outcome, was_superseded=was_superseded
        )
        self.let_go(lease.verify_attempt, rollout_id.index)

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
        return Verdict(status=VerdictStatus.GRADED, reward=reward, reason=f"lease {attempt}")
