"""Verified groups on their way from the broker to every rank (hop: broker -> learner).

Rank 0 pulls, screens and plans; the plan goes to all ranks as bytes; each rank then fetches the
payloads of its own share. Rank 0 speaks at least every ``PULL_WAIT_S``, so that no other rank waits
in a collective without a sign of life.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Protocol

import msgspec

from common.codec import pack, unpack
from common.config import Config
from common.errors import DataError, FatalError, RefusedError
from common.messages import DescribeGroups, EvictGroups, Groups, PullGroups
from common.types import Count, EvictReason, Record, RolloutId, VerifiedGroup
from learner.batches.batch import Document
from learner.batches.chunk import Chunk
from learner.batches.documents import build_document
from learner.batches.layout import ChunkLayout, PlannedRollout, RoutingShape, plan_chunk
from learner.batches.payload_source import PayloadFetcher, PayloadSource
from learner.batches.reference_source import ReferenceSource
from learner.batches.screening import Screen
from learner.broker_client import BrokerClient
from learner.checkpoints.lineage import Lineage
from learner.health.findings import Finding
from learner.models.mesh import Mesh

PULL_WAIT_S = 2.0
ENDED_GROUPS = frozenset({"gone", "trained", "not_handed_over"})
"""Refusals that say: the groups of a recorded step can no longer be had."""


class StopSignal(Protocol):
    """What the learner needs of :class:`common.lifecycle.StopFlag`."""

    def is_set(self) -> bool:
        """True once the process was asked to stop."""
        ...


class Ending(enum.Enum):
    """Why no further groups will come."""

    COMPLETED = "completed"
    EXHAUSTED = "exhausted"
    STOPPED = "stopped"


class Accumulate(Record, frozen=True, tag=True):
    """All ranks: compute this."""

    layout: ChunkLayout
    rollouts: tuple[PlannedRollout, ...]


class Idle(Record, frozen=True, tag=True):
    """All ranks: nothing has come yet."""


class Finish(Record, frozen=True, tag=True):
    """All ranks: no further groups."""

    ending: Ending


Directive = Accumulate | Idle | Finish


class _Failed(Record, frozen=True):
    """Groups that one rank cannot train: impossible payloads, and payloads that are gone."""

    bad: tuple[Count, ...]
    lost: tuple[Count, ...]
    findings: tuple[Finding, ...] = ()
    """What is impossible about the bad ones."""


class GroupSource:
    """The learner's end of the rollout stream; methods are collectives over all ranks."""

    def __init__(
        self,
        channel: BrokerClient,
        mesh: Mesh,
        config: Config,
        stop: StopSignal,
        vocab_size: int,
        payloads: PayloadFetcher | None = None,
        *,
        attention_ratio: float = 0.0,
        hidden_attention_ratio: float = math.inf,
        routing: RoutingShape | None = None,
    ) -> None:
        """``payloads`` fetches what is not with the broker.

        ``attention_ratio`` of the policy says what a long answer costs, see ``common.balance``, and
        ``hidden_attention_ratio`` what a long row costs, see ``common.packing``. With ``routing``
        its routers follow what samplers recorded.
        """
        self._payloads = PayloadSource(channel, payloads)
        self._channel = channel
        self._mesh = mesh
        self._config = config
        self._stop = stop
        self._vocab_size = vocab_size
        self._attention_ratio = attention_ratio
        self._routing = routing
        self._hidden_attention_ratio = hidden_attention_ratio
        self.references = ReferenceSource(channel, mesh)
        self.on_findings: Callable[[EvictReason, Sequence[Finding]], None] | None = None
        """Told what is wrong with groups that are evicted; of advantages only on rank 0."""

    def next_chunk(
        self, lineage: Lineage, policy_step: int, *, held: Sequence[int]
    ) -> Chunk | Ending:
        """Wait for groups of the batch at ``policy_step`` that already ``held`` others.

        Returns what is there, at most what the batch lacks. Raises :class:`FatalError` when a group
        breaks the lag bound.
        """
        screen = Screen(self._config, lineage, policy_step)
        groups: tuple[VerifiedGroup, ...] = ()
        while True:
            directive: Directive = Idle()
            if self._mesh.is_main:
                directive, groups = self._pull(screen, held)
            directive = self._share(directive)
            if isinstance(directive, Finish):
                return directive.ending
            if isinstance(directive, Accumulate):
                return self._fetch(directive, groups)

    def replay_chunks(
        self, lineage: Lineage, policy_step: int, layouts: Sequence[ChunkLayout]
    ) -> Iterator[Chunk | None]:
        """The chunks of a recorded step again; None where a group or its arrays are gone."""
        screen = Screen(self._config, lineage, policy_step)
        for layout in layouts:
            groups = self._describe(layout.group_ids) if self._mesh.is_main else ()
            found = {group.group_id: group for group in groups}
            directive: Directive = Finish(ending=Ending.EXHAUSTED)
            if all(self._is_replayable(found.get(group_id)) for group_id in layout.group_ids):
                groups = tuple(found[group_id] for group_id in layout.group_ids)
                directive = Accumulate(layout=layout, rollouts=_plan_all(screen, groups))
            directive = self._share(directive)
            chunk = self._fetch(directive, groups) if isinstance(directive, Accumulate) else None
            yield chunk if chunk is not None and chunk.layout == layout else None

    def _is_replayable(self, group: VerifiedGroup | None) -> bool:
        return group is not None and not self.references.others_in(group)

    def evict(self, group_ids: Sequence[int], reason: EvictReason) -> None:
        """Drop groups for ``reason``; only rank 0 tells the broker."""
        if self._mesh.is_main and group_ids:
            self._channel.request(EvictGroups(group_ids=tuple(group_ids), reason=reason))

    def _pull(
        self, screen: Screen, held: Sequence[int]
    ) -> tuple[Directive, tuple[VerifiedGroup, ...]]:
        if self._stop.is_set():
            return Finish(ending=Ending.STOPPED), ()
        lacking = self._config.learner.groups_per_step - len(held)
        reply = self._channel.request(
            PullGroups(
                policy_step=screen.policy_step,
                max_groups=lacking,
                wait_s=PULL_WAIT_S,
                held=tuple(held),
            )
        ).message
        if not isinstance(reply, Groups):
            raise FatalError(f"the broker answered PullGroups with {type(reply).__name__}")
        groups = self._screened(screen, reply.groups)
        if groups:
            return self._planned(screen, groups), groups
        if reply.exhausted and not reply.groups:
            return Finish(ending=Ending.EXHAUSTED), ()
        return Idle(), ()

    def _screened(
        self, screen: Screen, groups: Sequence[VerifiedGroup]
    ) -> tuple[VerifiedGroup, ...]:
        kept = []
        for group in groups:
            self.references.check(group)
            reason = screen.reason_to_evict(group)
            if reason is None:
                kept.append(group)
            else:
                self.evict([group.group_id], reason)
                if reason is EvictReason.NONFINITE:
                    self._tell(reason, screen.infinite_advantages(group))
        return tuple(kept)

    def _planned(self, screen: Screen, groups: Sequence[VerifiedGroup]) -> Accumulate:
        rollouts = _plan_all(screen, groups)
        layout = plan_chunk(
            [group.group_id for group in groups],
            rollouts,
            num_ranks=self._mesh.num_data_ranks,
            row_tokens=self._config.learner.row_tokens,
            microbatch_tokens=self._config.learner.microbatch_tokens,
            attention_ratio=self._attention_ratio,
            hidden_attention_ratio=self._hidden_attention_ratio,
        )
        return Accumulate(layout=layout, rollouts=rollouts)

    def _share(self, directive: Directive) -> Directive:
        if self._mesh.world_size == 1:
            return directive
        shared: Directive = unpack(self._mesh.broadcast(pack(directive)), Directive)
        return shared

    def _fetch(self, directive: Accumulate, groups: tuple[VerifiedGroup, ...]) -> Chunk:
        """Payloads of this rank's share.

        Groups with a bad payload on any rank are quarantined; those of which one is lost are not
        trained, and come again when it was sampled again.
        """
        planned = {rollout.rollout_id: rollout for rollout in directive.rollouts}
        mine = directive.layout.ranks[self._mesh.data_rank]
        wanted = [item for microbatch in mine for row in microbatch.rows for item in row]
        documents, failed = self._documents(wanted, planned)
        reports = self._mesh.gather(msgspec.json.encode(failed))
        everywhere = [msgspec.json.decode(report, type=_Failed) for report in reports]
        bad = {group_id for part in everywhere for group_id in part.bad}
        dropped = bad.union(*(part.lost for part in everywhere))
        self.evict(sorted(bad), EvictReason.QUARANTINED)
        # ranks that share rows find the same, which is told once
        findings = dict.fromkeys(item for part in everywhere for item in part.findings)
        self._tell(EvictReason.QUARANTINED, list(findings))
        chunk = Chunk(layout=directive.layout, rollouts=planned, documents=documents, groups=groups)
        return chunk.without(dropped)

    def _documents(
        self, wanted: Sequence[RolloutId], planned: Mapping[RolloutId, PlannedRollout]
    ) -> tuple[dict[RolloutId, Document], _Failed]:
        documents: dict[RolloutId, Document] = {}
        findings: list[Finding] = []
        received: set[RolloutId] = set()
        references = self.references.fetch(wanted)
        for header, frames in self._payloads.fetch([planned[item] for item in wanted]):
            rollout_id = header.rollout_id
            received.add(rollout_id)
            try:
                documents[rollout_id] = build_document(
                    header,
                    frames,
                    planned[rollout_id],
                    references=references,
                    vocab_size=self._vocab_size,
                    loss=self._config.learner.loss,
                    routing=self._routing,
                )
            except DataError as error:
                findings.append(_bad_payload(rollout_id, error))
        return documents, _failed(wanted, received, findings)

    def _tell(self, reason: EvictReason, findings: Sequence[Finding]) -> None:
        if findings and self.on_findings is not None:
            self.on_findings(reason, findings)

    def _describe(self, group_ids: Sequence[int]) -> tuple[VerifiedGroup, ...]:
        """The groups that the broker still has; a refusal of one is a refusal of all."""
        try:
            reply = self._channel.request(DescribeGroups(group_ids=tuple(group_ids))).message
        except RefusedError as error:
            if error.code not in ENDED_GROUPS:
                raise
            return ()
        return reply.groups if isinstance(reply, Groups) else ()


def _plan_all(screen: Screen, groups: Sequence[VerifiedGroup]) -> tuple[PlannedRollout, ...]:
    return tuple(rollout for group in groups for rollout in screen.plan(group))


def _bad_payload(rollout_id: RolloutId, error: DataError) -> Finding:
    return Finding(
        group_id=rollout_id.group_id,
        index=rollout_id.index,
        quantity="payload",
        problem=str(error),
    )


def _failed(
    wanted: Sequence[RolloutId], received: Set[RolloutId], findings: Sequence[Finding]
) -> _Failed:
    lost = {item.group_id for item in wanted if item not in received}
    bad = {finding.group_id for finding in findings}
    return _Failed(bad=tuple(sorted(bad)), lost=tuple(sorted(lost)), findings=tuple(findings))
