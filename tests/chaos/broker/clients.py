"""Clients that never give up and remember every word of the broker."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from common.errors import RefusedError
from common.messages import (
    Ack,
    CommitCheckpoint,
    CommitStep,
    FetchRollouts,
    Groups,
    Heartbeat,
    Lease,
    LeasePrompts,
    LeaseRollouts,
    PromptLeases,
    PullGroups,
    ReportWeights,
    RolloutLease,
    RolloutLeases,
    Rollouts,
    SubmitRollout,
    SubmitVerdict,
    WatchWeights,
    WeightNotice,
)
from common.transport import Channel
from common.types import Role, RolloutId, Verdict, VerdictStatus, VerifiedGroup, WeightVersion
from tests.broker_process import LearnerClient, arrays_of
from tests.builders import rollout_header
from tests.chaos.broker.diary import Witness
from tests.chaos.broker.oracle import History

MAX_POLICY_LAG = 2
LEAST_REWARD = 0.25
"""No verifier here gives less: a reward of 0 would be of the broker's making."""
_ASK_S = 1.0
_LEASES = 4

Connect = Callable[[Role, str], Awaitable[Channel]]


@dataclass
class Client:
    """What actors and verifiers have in common: a channel, leases that are kept alive, work."""

    connect: Connect
    name: str
    witness: Witness
    dice: random.Random
    think_s: float = 0.0
    """Mean time that a piece of work takes."""
    held: set[Lease] = field(default_factory=set)

    async def think(self) -> None:
        """Work on something."""
        if self.think_s:
            await asyncio.sleep(self.dice.expovariate(1 / self.think_s))

    async def keep_leases(self, channel: Channel) -> None:
        """A heartbeat names what is held; what the broker revokes is finished and sent anyway."""
        while True:
            await asyncio.sleep(channel.registered.heartbeat_s)
            await channel.request(Heartbeat(leases=tuple(self.held)))

    async def run(self) -> None:
        """Live until the run ends or this is cancelled."""
        raise NotImplementedError

    async def live(self, role: Role, *duties: Callable[[Channel], Awaitable[None]]) -> None:
        """Do all duties until the run ends or this is cancelled."""
        channel = await self.connect(role, self.name)
        tasks = [asyncio.ensure_future(duty(channel)) for duty in (self.keep_leases, *duties)]
        try:
            await asyncio.gather(*tasks)
        except RefusedError as error:
            if error.code != "sealed":
                raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await channel.close()


@dataclass
class Sampler(Client):
    """An actor."""

    serving: list[WeightVersion] = field(default_factory=list)
    max_groups: int = _LEASES

    async def run(self) -> None:
        """Answer prompts under the newest announced weights."""
        await self.live(Role.ACTOR, self._watch, self._sample)

    async def _watch(self, channel: Channel) -> None:
        while True:
            known = self.serving[-1] if self.serving else None
            reply = (await channel.request(WatchWeights(known=known, wait_s=_ASK_S))).message
            assert isinstance(reply, WeightNotice)
            if reply.announcement is not None:
                self.serving.append(reply.announcement.version)
                await channel.request(ReportWeights(version=self.serving[-1], proven=True))

    async def _sample(self, channel: Channel) -> None:
        while True:
            if not self.serving:
                await asyncio.sleep(0.02)
                continue
            ask = LeasePrompts(serving=self.serving[-1], max_groups=self.max_groups, wait_s=_ASK_S)
            reply = (await channel.request(ask)).message
            assert isinstance(reply, PromptLeases)
            self.held.update(item.lease for item in reply.leases)
            for item in reply.leases:
                await self._answer(channel, item.lease, self.serving[-1])

    async def _answer(self, channel: Channel, lease: Lease, serving: WeightVersion) -> None:
        await self.think()
        ids = [
            RolloutId(group_id=lease.group_id, index=index, attempt=lease.attempt)
            for index in lease.indices
        ]
        await asyncio.gather(*(self._submit(channel, rollout_id, serving) for rollout_id in ids))
        self.held.discard(lease)

    async def _submit(
        self, channel: Channel, rollout_id: RolloutId, serving: WeightVersion
    ) -> None:
        header = rollout_header(
            group_id=rollout_id.group_id,
            index=rollout_id.index,
            attempt=rollout_id.attempt,
            spans=((0, serving),),
        )
        message = SubmitRollout(rollout=header)
        reply = (await channel.request(message, arrays_of(rollout_id).frames())).message
        assert isinstance(reply, Ack)
        self.witness.rollout_answered(rollout_id, reply.outcome)


@dataclass
class Judge(Client):
    """A verifier that gives each answer another reward, so that verdicts can be told apart."""

    poisonous: Callable[[int], bool] = field(default=lambda _: False)
    """Groups that crash whoever verifies them."""

    async def run(self) -> None:
        """Judge everything."""
        await self.live(Role.VERIFIER, self._verify)

    async def _verify(self, channel: Channel) -> None:
        while True:
            ask = LeaseRollouts(max_rollouts=_LEASES, wait_s=_ASK_S)
            reply = (await channel.request(ask)).message
            assert isinstance(reply, RolloutLeases)
            self.held.update(map(_held, reply.leases))
            for lease in reply.leases:
                await self.think()
                await self._submit(channel, lease)
                self.held.discard(_held(lease))

    async def _submit(self, channel: Channel, lease: RolloutLease) -> None:
        rollout_id, verdict = lease.rollout.rollout_id, self._verdict(lease)
        message = SubmitVerdict(
            rollout_id=rollout_id, verify_attempt=lease.verify_attempt, verdict=verdict
        )
        self.witness.verdict_leaves(rollout_id, verdict)
        reply = (await channel.request(message)).message
        assert isinstance(reply, Ack)
        self.witness.verdict_answered(rollout_id, verdict, reply.outcome)

    def _verdict(self, lease: RolloutLease) -> Verdict:
        if self.poisonous(lease.rollout.rollout_id.group_id):
            reason = f"{self.name}: the child died of signal 11"
            return Verdict(status=VerdictStatus.INFRA_ERROR, reward=None, reason=reason)
        reward = self.dice.uniform(LEAST_REWARD, 1.0)
        return Verdict(status=VerdictStatus.GRADED, reward=reward)


def _held(lease: RolloutLease) -> Lease:
    rollout_id = lease.rollout.rollout_id
    return Lease(
        group_id=rollout_id.group_id, indices=(rollout_id.index,), attempt=lease.verify_attempt
    )


class Learner(LearnerClient):
    """Takes steps until told to stop."""

    history: History

    async def go_on(self, history: History, stop: asyncio.Event) -> None:
        """Step after step; the history notes what arrived before the step is committed."""
        self.history = history
        for policy_step in itertools.count(len(self.steps)):
            groups: list[VerifiedGroup] = []
            while len(groups) < self.groups_per_step:
                if stop.is_set():
                    return
                groups.extend(await self._gather(policy_step, groups))
            await self._commit(policy_step, groups)

    async def _gather(
        self, policy_step: int, held: list[VerifiedGroup]
    ) -> tuple[VerifiedGroup, ...]:
        pull = PullGroups(
            policy_step=policy_step,
            max_groups=self.groups_per_step - len(held),
            wait_s=0.5,
            held=tuple(group.group_id for group in held),
        )
        reply = (await self.channel.request(pull)).message
        assert isinstance(reply, Groups)
        ids = [item.rollout.rollout_id for group in reply.groups for item in group.rollouts]
        if not await self.check_arrays(ids):
            self.history.blame("lost", f"handed over, and the arrays are gone: {ids}")
        return reply.groups

    async def _commit(self, policy_step: int, groups: list[VerifiedGroup]) -> None:
        self.history.handed_over(groups, policy_step, MAX_POLICY_LAG)
        self.steps.append(tuple(group.group_id for group in groups))
        self.history.steps.append(self.steps[-1])
        commit = CommitStep(incarnation=0, policy_step=policy_step, group_ids=self.steps[-1])
        await self.channel.request(commit)
        await self.publish(policy_step + 1)
        if (policy_step + 1) % self.checkpoint_every == 0:
            await self.channel.request(CommitCheckpoint(policy_step=policy_step + 1))

    async def check_kept(self, rollouts: dict[int, list[RolloutId]], num_evicted: int) -> None:
        """All of these groups are still there, but for those that the broker says it evicted."""
        gone = [group for group, ids in rollouts.items() if not await self.check_arrays(ids)]
        if len(gone) > num_evicted:
            self.history.blame("lost", f"groups {gone} are gone, {num_evicted} were evicted")

    async def check_arrays(self, rollout_ids: list[RolloutId]) -> bool:
        """The bytes that were acknowledged are the bytes that come back; False without any."""
        if not rollout_ids:
            return True
        try:
            reply = await self.channel.request(FetchRollouts(rollout_ids=tuple(rollout_ids)))
        except RefusedError as error:
            if error.code != "gone":
                raise
            return False
        assert isinstance(reply.message, Rollouts)
        for place, rollout_id in enumerate(rollout_ids):
            sent = [bytes(frame) for frame in arrays_of(rollout_id).frames()]
            got = [bytes(frame) for frame in reply.frames[3 * place : 3 * place + 3]]
            if got != sent:
                self.history.blame("unexpected", f"{rollout_id} came back with other bytes")
        return True
