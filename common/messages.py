"""Everything said between a client and the broker: one class a hop, request and reply.

Every exchange is a request with one reply. Work is pulled: a request for ``max_*`` items is the
credit that the client grants, and the broker holds the request for up to ``wait_s`` until it has
something to give. All requests may be sent again after a reconnect: the broker treats a repeated
request as the same one (submissions by rollout id, commits by step).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from common.types import (
    Count,
    EvictReason,
    FiniteFloat,
    Name,
    Prompt,
    Reason,
    Record,
    Role,
    RolloutHeader,
    RolloutId,
    Text,
    Verdict,
    VerifiedGroup,
    WeightVersion,
)

SCHEMA = 1
"""Raised on every incompatible change; unlike peers refuse each other by name."""

Indices = Annotated[tuple[Count, ...], msgspec.Meta(min_length=1, max_length=4096)]
Names = Annotated[tuple[Name, ...], msgspec.Meta(max_length=16384)]
GroupIds = Annotated[tuple[Count, ...], msgspec.Meta(max_length=65536)]
WaitSeconds = Annotated[float, msgspec.Meta(ge=0, le=60)]


class Message(Record, frozen=True, tag=True):
    """Base of the tagged union."""


# --- membership -----------------------------------------------------------------------------------


class Register(Message, frozen=True):
    """First request of a client; ``nonce`` is fresh for each process start.

    A known name with a new nonce is a restarted process: its old leases are revoked at once.
    """

    role: Role
    name: Name
    nonce: Name
    host: Name
    pid: Count


class Registered(Message, frozen=True):
    """The broker's answer: which run this is and how often to be heard of."""

    run_id: Name
    broker_nonce: Name
    heartbeat_s: FiniteFloat
    lease_s: FiniteFloat


class Lease(Record, frozen=True):
    """A claim on work: some indices of a group under one attempt."""

    group_id: Count
    indices: Indices
    attempt: Count


class Heartbeat(Message, frozen=True):
    """Sign of life; renews exactly the leases that it names."""

    leases: Annotated[tuple[Lease, ...], msgspec.Meta(max_length=65536)] = ()
    serving: WeightVersion | None = None


class HeartbeatReply(Message, frozen=True):
    """Leases of the heartbeat that the client no longer owns and should drop."""

    revoked: Annotated[tuple[Lease, ...], msgspec.Meta(max_length=65536)] = ()


# --- generation -----------------------------------------------------------------------------------


class LeasePrompts(Message, frozen=True):
    """An actor with room for ``max_groups`` groups asks for prompts to sample under ``serving``."""

    serving: WeightVersion
    max_groups: Count
    wait_s: WaitSeconds


class PromptLease(Record, frozen=True):
    """Sample ``len(indices)`` answers to ``prompt``."""

    prompt: Prompt
    lease: Lease


class PromptLeases(Message, frozen=True):
    """Reply to :class:`LeasePrompts`; empty when the wait ran out."""

    leases: Annotated[tuple[PromptLease, ...], msgspec.Meta(max_length=4096)] = ()


class SubmitRollout(Message, frozen=True):
    """One finished rollout, its three arrays in the frames."""

    rollout: RolloutHeader


class ReturnLease(Message, frozen=True):
    """The client gives work back unfinished; ``error`` counts towards the dead letter if set."""

    lease: Lease
    error: Reason = ""


# --- verification ---------------------------------------------------------------------------------


class LeaseRollouts(Message, frozen=True):
    """A verifier with room for ``max_rollouts`` asks for work."""

    max_rollouts: Count
    wait_s: WaitSeconds


class RolloutLease(Record, frozen=True):
    """Verify one rollout; ``verify_attempt`` fences a late verdict."""

    prompt: Prompt
    rollout: RolloutHeader
    verify_attempt: Count


class RolloutLeases(Message, frozen=True):
    """Reply to :class:`LeaseRollouts`: three frames a rollout, in order."""

    leases: Annotated[tuple[RolloutLease, ...], msgspec.Meta(max_length=4096)] = ()


class SubmitVerdict(Message, frozen=True):
    """A typed verdict; ``infra-error`` sends the rollout to another verifier."""

    rollout_id: RolloutId
    verify_attempt: Count
    verdict: Verdict


# --- consumption: learner or collector ------------------------------------------------------------


class PullGroups(Message, frozen=True):
    """Ask for up to ``max_groups`` verified groups for the batch computed at ``policy_step``.

    ``held`` names the groups received and not yet committed, so that those whose reply was lost are
    delivered again. A learner that leaves it out must ask for all that its batch still lacks, a
    collector must have committed what it got.
    """

    policy_step: Count
    max_groups: Count
    wait_s: WaitSeconds
    held: GroupIds | None = None


class Groups(Message, frozen=True):
    """Reply to :class:`PullGroups`; the arrays are fetched by whichever rank needs them.

    ``exhausted`` says that no further group will ever come (a finite prompt source is used up).
    """

    groups: Annotated[tuple[VerifiedGroup, ...], msgspec.Meta(max_length=4096)] = ()
    exhausted: bool = False


class DescribeGroups(Message, frozen=True):
    """Ask again for groups handed over or stepped before: replay after a restart."""

    group_ids: GroupIds


class FetchRollouts(Message, frozen=True):
    """Ask for the arrays of these rollouts."""

    rollout_ids: Annotated[tuple[RolloutId, ...], msgspec.Meta(min_length=1, max_length=65536)]


class Rollouts(Message, frozen=True):
    """Reply to :class:`FetchRollouts`: three frames a rollout, in the order asked for."""

    rollouts: Annotated[tuple[RolloutHeader, ...], msgspec.Meta(max_length=65536)]


class CommitStep(Message, frozen=True):
    """The batch computed at ``policy_step`` has a durable step record: its groups are stepped."""

    incarnation: Count
    policy_step: Count
    group_ids: GroupIds


class CommitCheckpoint(Message, frozen=True):
    """A committed checkpoint holds ``policy_step`` batches: the groups of those are trained."""

    policy_step: Count


class SteppedBatch(Record, frozen=True):
    """One durable step record, as a restarted learner reports it."""

    policy_step: Count
    group_ids: GroupIds


class ResumeLearner(Message, frozen=True):
    """A learner starts at checkpoint ``policy_step`` and lists the step records it will replay.

    Groups handed over but in no record go back to waiting. ``forked`` says that the published
    weights after the checkpoint could not be reproduced: ``incarnation`` is then a new one and the
    groups of the lost steps wait again.
    """

    incarnation: Count
    policy_step: Count
    stepped: Annotated[tuple[SteppedBatch, ...], msgspec.Meta(max_length=65536)] = ()
    forked: bool = False


class EvictGroups(Message, frozen=True):
    """The consumer drops these groups for ``reason``."""

    group_ids: GroupIds
    reason: EvictReason


class EndRun(Message, frozen=True):
    """The run is over: in-flight groups become evicted{run_end} and the journal is sealed."""


# --- weights --------------------------------------------------------------------------------------


class TransferGroup(Record, frozen=True):
    """A numbered process group that will carry one or more publishes.

    Rank 0 is the learner; member ``i`` of ``members`` is rank ``i + 1``.
    """

    number: Count
    store_host: Name
    store_port: Count
    token: Name
    members: Names


class PublishWeights(Message, frozen=True):
    """The learner announces ``version``; the manifest is the one frame.

    ``directory`` is where any actor can pull the version; ``transfer`` is None when nobody is to be
    sent to.
    """

    version: WeightVersion
    manifest_digest: Name
    directory: Text = ""
    transfer: TransferGroup | None = None


class WatchWeights(Message, frozen=True):
    """An actor asks for the newest announcement that is not ``known``."""

    known: WeightVersion | None
    wait_s: WaitSeconds


class WeightNotice(Message, frozen=True):
    """Reply to :class:`WatchWeights`; an announcement comes with its manifest as the one frame."""

    announcement: PublishWeights | None = None


class ReportWeights(Message, frozen=True):
    """An actor proved (or failed to prove) that it serves ``version``."""

    version: WeightVersion
    proven: bool
    stall_s: FiniteFloat = 0.0
    source: Name = "pull"
    reason: Reason = ""


class GetFleet(Message, frozen=True):
    """Ask which actors are alive."""


class FleetMember(Record, frozen=True):
    """One live client."""

    role: Role
    name: Name
    host: Name
    pid: Count
    silent_s: FiniteFloat
    serving: WeightVersion | None = None


class Fleet(Message, frozen=True):
    """Reply to :class:`GetFleet`."""

    members: Annotated[tuple[FleetMember, ...], msgspec.Meta(max_length=16384)] = ()


# --- watching -------------------------------------------------------------------------------------


class GetStatus(Message, frozen=True):
    """Ask for the state of the run."""


class GroupCounts(Record, frozen=True):
    """Gauges over all groups; ``admitted`` equals the sum of the other five after every event."""

    admitted: Count = 0
    trained: Count = 0
    evicted: Count = 0
    dead_lettered: Count = 0
    leased: Count = 0
    pending: Count = 0

    @property
    def imbalance(self) -> int:
        """Zero, or a group was lost or counted twice."""
        accounted = self.trained + self.evicted + self.dead_lettered + self.leased + self.pending
        return self.admitted - accounted


class NamedCount(Record, frozen=True):
    """A count under a fixed name (an evict reason, a role that is waited for)."""

    name: Name
    count: Count


class Status(Message, frozen=True):
    """Reply to :class:`GetStatus`."""

    run_id: Name
    groups: GroupCounts
    evicted: tuple[NamedCount, ...]
    policy_step: Count
    incarnation: Count
    newest_version: WeightVersion | None
    waiting: tuple[NamedCount, ...]
    sealed: bool = False
    weight_syncs: Count = 0
    weight_proofs_failed: Count = 0
    duplicates: Count = 0
    redelivered: Count = 0


# --- generic replies ------------------------------------------------------------------------------


class Ack(Message, frozen=True):
    """Done, durably. ``outcome`` is ``accepted``, ``duplicate``, ``late`` or ``quarantined``."""

    outcome: Name = "accepted"


class Refused(Message, frozen=True):
    """Not done. ``code`` is for programs, ``reason`` for people."""

    code: Name
    reason: Reason


Request = (
    Register
    | Heartbeat
    | LeasePrompts
    | SubmitRollout
    | ReturnLease
    | LeaseRollouts
    | SubmitVerdict
    | PullGroups
    | DescribeGroups
    | FetchRollouts
    | CommitStep
    | CommitCheckpoint
    | ResumeLearner
    | EvictGroups
    | EndRun
    | PublishWeights
    | WatchWeights
    | ReportWeights
    | GetFleet
    | GetStatus
)
Reply = (
    Registered
    | HeartbeatReply
    | PromptLeases
    | RolloutLeases
    | Groups
    | Rollouts
    | WeightNotice
    | Fleet
    | Status
    | Ack
    | Refused
)
AnyMessage = Request | Reply


def rollouts_in(message: AnyMessage) -> tuple[RolloutHeader, ...]:
    """The rollouts whose arrays travel as frames of ``message``, three frames each, in order."""
    if isinstance(message, SubmitRollout):
        return (message.rollout,)
    if isinstance(message, RolloutLeases):
        return tuple(lease.rollout for lease in message.leases)
    if isinstance(message, Rollouts):
        return message.rollouts
    return ()


def has_manifest(message: AnyMessage) -> bool:
    """True when the one frame of ``message`` is an encoded weight manifest."""
    if isinstance(message, WeightNotice):
        return message.announcement is not None
    return isinstance(message, PublishWeights)
