"""A simulated learner: a real one's books on disk, and a death between any two lines of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.codec import pack_manifest
from common.messages import (
    Ack,
    CommitCheckpoint,
    CommitStep,
    DescribeGroups,
    EndRun,
    EvictGroups,
    FetchReferences,
    GetStatus,
    Groups,
    PublishWeights,
    PullGroups,
    References,
    ResumeLearner,
    SetReference,
    Status,
    SteppedBatch,
)
from common.types import (
    EvictReason,
    RolloutHeader,
    VerifiedGroup,
    VerifiedRollout,
    WeightVersion,
)
from common.weight_layout import WeightManifest
from tests.builders import version
from tests.simulation.process import Process
from tests.simulation.trace import Violation

_LATE_PUBLISH_S = 20.0
_RESET_REFERENCE_EVERY = 5
_IRREPLACEABLE = frozenset({"gone"})
"""Refusals that say that a step record cannot be replayed."""


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
    batches: dict[int, tuple[VerifiedGroup, ...]] = field(default_factory=dict)
    """Step records: groups in order, with their verdicts, masks and references."""
    trunk: list[int] = field(default_factory=lambda: [0])
    names: list[WeightVersion] = field(default_factory=lambda: [version(0)])
    """Versions of the weights along the trunk."""
    must_fork: bool = False
    """A step cannot be replayed: its groups are gone."""
    parents: dict[int, int] = field(default_factory=dict)
    nodes: dict[WeightVersion, int] = field(default_factory=lambda: {version(0): 0})
    num_journal_events: int = 0
    """The longest that the broker has said its journal is; a shorter one would be refused."""

    @property
    def policy_step(self) -> int:
        """The step that is computed once all records are replayed."""
        return self.checkpoint + sum(step >= self.checkpoint for step in self.batches)

    @property
    def reference(self) -> WeightVersion:
        """The reference of the step that is computed: reset every few steps."""
        return self.names[self.policy_step - self.policy_step % _RESET_REFERENCE_EVERY]

    def group_ids(self, step: int) -> tuple[int, ...]:
        """Groups of a step record."""
        return tuple(group.group_id for group in self.batches[step])

    def age(self, at: WeightVersion) -> int:
        """Training batches between the weights ``at`` and those of now, along the tree."""
        node, distance = self.nodes[at], 0
        while node not in self.trunk:
            node, distance = self.parents[node], distance + 1
        return distance + self.policy_step - self.trunk.index(node)

    def trained_rollouts(self) -> Counter[RolloutHeader]:
        """How often each rollout is in a step record; no two rollouts have equal headers."""
        groups = (group for batch in self.batches.values() for group in batch)
        return Counter(item.rollout for group in groups for item in group.rollouts)

    def write_record(self, batch: Sequence[VerifiedGroup]) -> None:
        """A step is durable: its weights exist from now on."""
        step = self.policy_step
        self.batches[step] = tuple(batch)
        rollout, count = self.trained_rollouts().most_common(1)[0]
        if count > 1:
            group_id = rollout.rollout_id.group_id
            raise Violation("duplicated", f"{rollout} is in two steps", group_id)
        node = len(self.parents) + 1
        self.parents[node] = self.trunk[-1]
        self.trunk.append(node)
        self.names.append(version(step + 1, self.incarnation))
        self.nodes[version(step + 1, self.incarnation)] = node

    def fork(self) -> None:
        """The steps after the checkpoint cannot be reproduced: their weights are a lost branch."""
        self.incarnation += 1
        self.must_fork = False
        self.trunk = self.trunk[: self.checkpoint + 1]
        self.names = self.names[: self.checkpoint + 1]
        self.batches = {k: batch for k, batch in self.batches.items() if k < self.checkpoint}
        self.nodes[version(self.checkpoint, self.incarnation)] = self.trunk[-1]


class Learner(Process):
    """Pulls, steps, commits, publishes, checkpoints; replays or forks after its death."""

    checkpoint_every = 3

    def __init__(self, *surroundings: Any, **options: Any) -> None:
        super().__init__(*surroundings, **options)
        self.disk = LearnerDisk()

    async def live(self) -> None:
        """See :meth:`Process.live`."""
        self._publishing: asyncio.Task[None] | None = None
        self._batch: list[VerifiedGroup] = []
        self._told_reference: WeightVersion | None = None
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
            self.network.trace.fault("learner_killed", point)
            raise LearnerDied(point)

    # --- starting ---------------------------------------------------------------------------------

    async def _resume(self) -> None:
        disk = self.disk
        chooses_to = self._num_lives > 1 and self.random.random() < self.behaviour.fork
        if chooses_to or disk.must_fork:
            self.network.trace.fault("learner_forked")
            self.books.num_forks += 1
            disk.fork()
            self._die_here("after the new incarnation is durable")
            await self._tell_broker(forked=True)
        else:
            await self._tell_broker(forked=False)
            for step in range(disk.checkpoint, disk.policy_step):
                await self._replay(step)
        status = (await self.ask(GetStatus())).message
        assert isinstance(status, Status)
        here = (disk.incarnation, disk.policy_step)
        if (status.incarnation, status.policy_step) != here:
            raise Violation("G3", f"the learner resumed at {here}, the broker is at {status}")
        self.books.step_committed(disk.incarnation, disk.policy_step)
        await self._tell_reference()
        self._publish()

    def on_refused(self, codes: Collection[str]) -> None:
        """See :meth:`Process.on_refused`."""
        self.disk.must_fork = self.disk.must_fork or not _IRREPLACEABLE.isdisjoint(codes)

    async def _tell_reference(self) -> None:
        wanted = self.disk.reference
        if not self.books.rules.has_verifier_reference or wanted == self._told_reference:
            return
        self.books.references.naming(wanted)
        await self.ask(SetReference(version=wanted))
        self._told_reference = wanted
        self._die_here("after naming the reference")

    async def _tell_broker(self, *, forked: bool) -> None:
        disk = self.disk
        replayed = range(disk.checkpoint, disk.policy_step)
        message = ResumeLearner(
            incarnation=disk.incarnation,
            policy_step=disk.checkpoint,
            stepped=tuple(
                SteppedBatch(policy_step=step, group_ids=disk.group_ids(step)) for step in replayed
            ),
            forked=forked,
            num_journal_events=disk.num_journal_events,
        )
        await self._commit(message)
        self._die_here("after resuming")

    async def _commit(self, message: CommitStep | CommitCheckpoint | ResumeLearner) -> None:
        """What the learner is told of the journal is never lost, whatever is acknowledged early."""
        reply = (await self.ask(message)).message
        assert isinstance(reply, Ack)
        told = reply.num_journal_events
        if told and told < self.disk.num_journal_events:
            known = self.disk.num_journal_events
            raise Violation("G3", f"the journal has {told} events, it had {known}")
        self.disk.num_journal_events = max(told, self.disk.num_journal_events)

    async def _replay(self, step: int) -> None:
        """The groups of a record must come again, whole, with the same masks and references."""
        group_ids, batch = self.disk.group_ids(step), self.disk.batches[step]
        reply = (await self.ask(DescribeGroups(group_ids=group_ids))).message
        assert isinstance(reply, Groups)
        got = tuple(group.group_id for group in reply.groups)
        if got != group_ids:
            raise Violation("lost", f"groups {group_ids} were to be replayed, {got} came")
        for group, recorded in zip(reply.groups, batch, strict=True):
            if group.rollouts != recorded.rollouts:
                raise Violation("G4", f"{group} is replayed as {recorded}", group.group_id)
            self.books.group_delivered(group)
            if not await self._fetch(group):
                self.disk.must_fork = True
                raise LearnerDied("arrays of a step are lost")

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
                if not await self._fetch(group):
                    self._batch.remove(group)
            if self._batch and self.random.random() < self.behaviour.zero_advantage:
                await self._evict(self._batch.pop())
            self._die_here("between pulls")

    def _take(self, group: VerifiedGroup) -> None:
        self.books.group_delivered(group)
        if any(group.group_id == held.group_id for held in self._batch):
            raise Violation("duplicated", f"group {group.group_id} is held twice", group.group_id)
        lags = [self._trained_lag(item) for item in group.rollouts if item.num_trained_tokens]
        if not lags:
            raise Violation("G5", f"nothing of group {group.group_id} is left", group.group_id)
        if max(lags) > self.books.rules.max_policy_lag:
            raise Violation("G5", f"group {group.group_id} has lags {lags}", group.group_id)
        self.books.saw_lag(max(lags))
        self._batch.append(group)

    def _trained_lag(self, item: VerifiedRollout) -> int:
        """Age of the oldest token that carries gradient; masks must hide older ones only."""
        spans = item.rollout.version_spans
        hidden = [self.disk.age(spans[number].version) for number in item.masked_spans]
        is_allowed = self.books.rules.staleness == "mask_tokens"
        if hidden and (not is_allowed or min(hidden) <= self.books.rules.max_policy_lag):
            group_id = item.rollout.rollout_id.group_id
            raise Violation("masks", f"tokens of ages {hidden} are masked", group_id)
        self.books.tally["spans masked"] += len(hidden)
        return max(self.disk.age(spans[number].version) for number in item.trained_spans)

    async def _fetch(self, group: VerifiedGroup) -> bool:
        """Fetch and check all arrays; False when some are lost."""
        if self.books.rules.has_verifier_reference:
            await self._fetch_references(group)
        return await self.fetch([item.rollout for item in group.rollouts])

    async def _fetch_references(self, group: VerifiedGroup) -> None:
        recorded = {g.group_id: g for batch in self.disk.batches.values() for g in batch}
        known = recorded.get(group.group_id)
        is_replayed = known is not None and known.rollouts == group.rollouts
        wanted = group.rollouts[0].reference_version if is_replayed else self._told_reference
        assert wanted is not None
        self.books.references.check_group(group, wanted)
        ids = tuple(item.rollout.rollout_id for item in group.rollouts)
        reply = await self.ask(FetchReferences(rollout_ids=ids))
        assert isinstance(reply.message, References)
        self.books.references.check_content(group, reply.message, reply.frames, wanted)

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
        disk.write_record(self._batch)
        self._die_here("between step record and commit")
        commit = CommitStep(incarnation=disk.incarnation, policy_step=step, group_ids=group_ids)
        await self._commit(commit)
        self.books.step_committed(disk.incarnation, disk.policy_step)
        if self.random.random() < 0.1:
            await self._commit(commit)  # an answer that the learner forgot
        self._batch = []
        self._die_here("between commit and publication")
        await self._tell_reference()
        self._publish()
        if disk.policy_step % self.checkpoint_every == 0:
            await self._checkpoint()

    async def _checkpoint(self) -> None:
        self._die_here("before the checkpoint")
        self.disk.checkpoint = self.disk.policy_step
        self._die_here("between checkpoint and its commit")
        await self._commit(CommitCheckpoint(policy_step=self.disk.checkpoint))
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
        stepped = [group for batch in self.disk.batches.values() for group in batch]
        num_ids = len({group.group_id for group in stepped})
        if len(stepped) != trained or num_ids != trained:
            raise Violation("G3", f"{trained} groups should be trained once, got {stepped}")
        counts = status.groups
        if counts.imbalance or counts.leased or counts.pending:
            raise Violation("G2", f"after the end of the run: {counts}")
        if counts.trained != trained:
            raise Violation("G2", f"{trained} groups were trained, the broker counts {counts}")
