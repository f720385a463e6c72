"""A simulated learner: a real one's books on disk, and a death between any two lines of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from common.codec import pack_manifest
from common.messages import (
    CommitCheckpoint,
    CommitStep,
    DescribeGroups,
    EndRun,
    EvictGroups,
    FetchRollouts,
    GetStatus,
    Groups,
    PublishWeights,
    PullGroups,
    ResumeLearner,
    Rollouts,
    Status,
    SteppedBatch,
)
from common.types import EvictReason, VerifiedGroup, WeightVersion
from common.weight_layout import WeightManifest
from tests.builders import version
from tests.simulation.process import Process
from tests.simulation.trace import Violation

_LATE_PUBLISH_S = 20.0


class LearnerDied(Exception):
    """The process ended at one of its kill points."""


@dataclass
class LearnerDisk:
    """What survives the learner: ``trunk[k]`` is the node of the weights of policy_step ``k``.

    ``nodes`` are weight versions in the tree of everything ever trained: the true age of a token is
    counted along it, with no help from the broker's timeline.
    """

    incarnation: int = 0
    checkpoint: int = 0
    records: dict[int, tuple[int, ...]] = field(default_factory=dict)
    trunk: list[int] = field(default_factory=lambda: [0])
    parents: dict[int, int] = field(default_factory=dict)
    nodes: dict[WeightVersion, int] = field(default_factory=lambda: {version(0): 0})

    @property
    def policy_step(self) -> int:
        """The step that is computed once all records are replayed."""
        return self.checkpoint + sum(step >= self.checkpoint for step in self.records)

    def age(self, at: WeightVersion) -> int:
        """Training batches between the weights ``at`` and those of now, along the tree."""
        node, distance = self.nodes[at], 0
        while node not in self.trunk:
            node, distance = self.parents[node], distance + 1
        return distance + self.policy_step - self.trunk.index(node)

    def write_record(self, group_ids: tuple[int, ...]) -> None:
        """A step is durable: its weights exist from now on."""
        earlier = {group for ids in self.records.values() for group in ids}
        if not earlier.isdisjoint(group_ids):
            raise Violation("duplicated", f"{group_ids} holds a group of an earlier step")
        step = self.policy_step
        node = len(self.parents) + 1
        self.parents[node] = self.trunk[-1]
        self.trunk.append(node)
        self.records[step] = group_ids
        self.nodes[version(step + 1, self.incarnation)] = node

    def fork(self) -> None:
        """The steps after the checkpoint cannot be reproduced: their weights are a lost branch."""
        self.incarnation += 1
        self.trunk = self.trunk[: self.checkpoint + 1]
        self.records = {k: ids for k, ids in self.records.items() if k < self.checkpoint}
        self.nodes[version(self.checkpoint, self.incarnation)] = self.trunk[-1]


class Learner(Process):
    """Pulls, steps, commits, publishes, checkpoints; replays or forks after its death."""

    checkpoint_every = 3

    def __init__(self, *surroundings: Any) -> None:
        super().__init__(*surroundings)
        self.disk = LearnerDisk()

    async def live(self) -> None:
        """See :meth:`Process.live`."""
        self._publishing: asyncio.Task[None] | None = None
        self._batch: list[VerifiedGroup] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                beats = tasks.create_task(self.send_heartbeats())
                await self._train()
                beats.cancel()
        except* LearnerDied:
            pass

    async def _train(self) -> None:
        await self._resume()
        disk = self.disk
        while disk.policy_step < self.books.rules.num_steps:
            await self._fill_batch()
            await self._step()
        await self._checkpoint()
        self.books.end_was_sent = True
        await self.ask(EndRun())
        status = (await self.ask(GetStatus())).message
        assert isinstance(status, Status)
        self._check_end(status)
        self.is_done = True

    def _die_here(self, point: str) -> None:
        """A numbered kill point."""
        if self.random.random() < self.behaviour.kill_point:
            self._network.trace.fault("learner_killed", point)
            raise LearnerDied(point)

    # --- starting ---------------------------------------------------------------------------------

    async def _resume(self) -> None:
        disk = self.disk
        if self._num_lives > 1 and self.random.random() < self.behaviour.fork:
            self._network.trace.fault("learner_forked")
            self.books.num_forks += 1
            disk.fork()
            self._die_here("after the new incarnation is durable")
            await self._tell_broker(forked=True)
        else:
            await self._tell_broker(forked=False)
            for step in range(disk.checkpoint, disk.policy_step):
                await self._replay(disk.records[step])
        status = (await self.ask(GetStatus())).message
        assert isinstance(status, Status)
        here = (disk.incarnation, disk.policy_step)
        if (status.incarnation, status.policy_step) != here:
            raise Violation("G3", f"the learner resumed at {here}, the broker is at {status}")
        self.books.step_committed(disk.incarnation, disk.policy_step)
        self._publish()

    async def _tell_broker(self, *, forked: bool) -> None:
        disk = self.disk
        replayed = range(disk.checkpoint, disk.policy_step)
        message = ResumeLearner(
            incarnation=disk.incarnation,
            policy_step=disk.checkpoint,
            stepped=tuple(
                SteppedBatch(policy_step=step, group_ids=disk.records[step]) for step in replayed
            ),
            forked=forked,
        )
        await self.ask(message)
        self._die_here("after resuming")

    async def _replay(self, group_ids: tuple[int, ...]) -> None:
        """The groups of a record must come again, whole."""
        reply = (await self.ask(DescribeGroups(group_ids=group_ids))).message
        assert isinstance(reply, Groups)
        got = tuple(group.group_id for group in reply.groups)
        if got != group_ids:
            raise Violation("lost", f"groups {group_ids} were to be replayed, {got} came")
        for group in reply.groups:
            self.books.group_delivered(group)
            await self._fetch(group)

    # --- a step -----------------------------------------------------------------------------------

    async def _fill_batch(self) -> None:
        while (lacking := self.books.rules.groups_per_step - len(self._batch)) > 0:
            message = PullGroups(
                policy_step=self.disk.policy_step,
                max_groups=self.random.randint(1, lacking),
                wait_s=self.random.uniform(1.0, 20.0),
                held=tuple(group.group_id for group in self._batch),
            )
            reply = (await self.ask(message)).message
            assert isinstance(reply, Groups)
            for group in reply.groups:
                self._take(group)
                await self._fetch(group)
            if self._batch and self.random.random() < self.behaviour.zero_advantage:
                await self._evict(self._batch.pop())
            self._die_here("between pulls")

    def _take(self, group: VerifiedGroup) -> None:
        self.books.group_delivered(group)
        if any(group.group_id == held.group_id for held in self._batch):
            raise Violation("duplicated", f"group {group.group_id} is held twice", group.group_id)
        lag = max(
            self.disk.age(span.version)
            for item in group.rollouts
            for span in item.rollout.version_spans
        )
        if lag > self.books.rules.max_policy_lag:
            raise Violation("G5", f"group {group.group_id} has lag {lag}", group.group_id)
        self.books.saw_lag(lag)
        self._batch.append(group)

    async def _fetch(self, group: VerifiedGroup) -> None:
        wanted = tuple(item.rollout.rollout_id for item in group.rollouts)
        reply = await self.ask(FetchRollouts(rollout_ids=wanted))
        assert isinstance(reply.message, Rollouts)
        for place, header in enumerate(reply.message.rollouts):
            self.books.check_content(header, reply.frames[3 * place : 3 * place + 3])

    async def _evict(self, group: VerifiedGroup) -> None:
        self.books.eviction_sent.add(group.group_id)
        await self.ask(EvictGroups(group_ids=(group.group_id,), reason=EvictReason.ZERO_ADVANTAGE))
        self.books.eviction_acknowledged.add(group.group_id)

    async def _step(self) -> None:
        disk = self.disk
        group_ids = tuple(group.group_id for group in self._batch)
        await self.pause(self.random.expovariate(1.0))
        self._die_here("before the step record")
        step = disk.policy_step
        disk.write_record(group_ids)
        self._die_here("between step record and commit")
        commit = CommitStep(incarnation=disk.incarnation, policy_step=step, group_ids=group_ids)
        await self.ask(commit)
        self.books.step_committed(disk.incarnation, disk.policy_step)
        if self.random.random() < 0.1:
            await self.ask(commit)  # an answer that the learner forgot
        self._batch = []
        self._die_here("between commit and publication")
        self._publish()
        if disk.policy_step % self.checkpoint_every == 0:
            await self._checkpoint()

    async def _checkpoint(self) -> None:
        self._die_here("before the checkpoint")
        self.disk.checkpoint = self.disk.policy_step
        self._die_here("between checkpoint and its commit")
        await self.ask(CommitCheckpoint(policy_step=self.disk.checkpoint))
        self._die_here("after the checkpoint")

    # --- weights and the end ----------------------------------------------------------------------

    def _publish(self) -> None:
        """Publish the newest weights in the background; a newer one replaces one that waits."""
        if self._publishing is not None:
            self._publishing.cancel()
        newest = version(self.disk.policy_step, self.disk.incarnation)
        self._publishing = self._tasks.create_task(self._announce(newest))

    async def _announce(self, newest: WeightVersion) -> None:
        is_late = self.random.random() < self.behaviour.late_publish
        await self.pause(_LATE_PUBLISH_S * self.random.random() if is_late else 0.1)
        manifest = WeightManifest(version=newest, tensors=())
        message = PublishWeights(version=newest, manifest_digest=manifest.digest())
        await self.ask(message, [pack_manifest(manifest)])

    def _check_end(self, status: Status) -> None:
        trained = self.books.rules.num_steps * self.books.rules.groups_per_step
        stepped = [group for ids in self.disk.records.values() for group in ids]
        if len(set(stepped)) != trained or len(stepped) != trained:
            raise Violation("G3", f"{trained} groups should be trained once, got {stepped}")
        counts = status.groups
        if counts.imbalance or counts.leased or counts.pending:
            raise Violation("G2", f"after the end of the run: {counts}")
        if counts.trained != trained:
            raise Violation("G2", f"{trained} groups were trained, the broker counts {counts}")
