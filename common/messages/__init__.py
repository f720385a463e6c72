"""Everything said between a client and the broker: one class a hop, request and reply.

Every exchange is a request with one reply. Work is pulled: a request for ``max_*`` items is the
credit that the client grants, and the broker holds the request for up to ``wait_s`` until it has
something to give. All requests may be sent again after a reconnect: the broker treats a repeated
request as the same one (submissions by rollout id, commits by step). Small requests of one client
may travel together (``Batch``) and are each treated as if they had come alone.
"""

from __future__ import annotations

from common.messages.base import (
    SCHEMA,
    Ack,
    Acks,
    GroupIds,
    Indices,
    Message,
    Names,
    Promise,
    Refused,
    WaitSeconds,
)
from common.messages.batch import MAX_BATCH_REQUESTS, Batch, BatchedRequest
from common.messages.consumption import (
    CommitCheckpoint,
    CommitStep,
    DescribeGroups,
    EndRun,
    EvictGroups,
    FetchReferences,
    FetchRollouts,
    Groups,
    PullGroups,
    References,
    ResumeLearner,
    Rollouts,
    SetReference,
    SteppedBatch,
)
from common.messages.flow import Credit, ReserveBytes
from common.messages.generation import (
    LeasePrompts,
    PromptLease,
    PromptLeases,
    ReturnLease,
    SubmitRollout,
)
from common.messages.membership import Heartbeat, HeartbeatReply, Lease, Register, Registered
from common.messages.payloads import (
    Ended,
    GetStores,
    ListEnded,
    PutRollouts,
    ReportLost,
    StoreAddress,
    Stores,
)
from common.messages.verification import LeaseRollouts, RolloutLease, RolloutLeases, SubmitVerdict
from common.messages.watching import GetStatus, GroupCounts, NamedCount, Status
from common.messages.weights import (
    Fleet,
    FleetMember,
    GetFleet,
    PublishWeights,
    ReportWeights,
    TransferGroup,
    WatchWeights,
    WeightNotice,
)
from common.types import ReferenceHeader, RolloutHeader

Request = BatchedRequest | Register | PutRollouts | PublishWeights
Reply = (
    Registered
    | HeartbeatReply
    | Credit
    | PromptLeases
    | RolloutLeases
    | Groups
    | Rollouts
    | References
    | WeightNotice
    | Fleet
    | Status
    | Stores
    | Ended
    | Ack
    | Acks
    | Refused
)
AnyMessage = Request | Reply | Batch

WITH_FRAMES = frozenset(
    (
        SubmitRollout,
        RolloutLeases,
        SubmitVerdict,
        PutRollouts,
        Rollouts,
        References,
        PublishWeights,
        WeightNotice,
    )
)
"""Messages that array or manifest frames may follow; every other has none."""


def rollouts_in(message: AnyMessage) -> tuple[RolloutHeader, ...]:
    """The rollouts whose arrays travel as frames of ``message``, in order.

    A submission or a lease carries none of a rollout that a payload server holds.
    """
    if isinstance(message, SubmitRollout):
        return () if message.rollout.store else (message.rollout,)
    if isinstance(message, RolloutLeases):
        return tuple(lease.rollout for lease in message.leases if not lease.rollout.store)
    if isinstance(message, Rollouts | PutRollouts):
        return message.rollouts
    return ()


def references_in(message: AnyMessage) -> tuple[ReferenceHeader, ...]:
    """The reference log-probabilities that travel as frames of ``message``, one each, in order."""
    if isinstance(message, SubmitVerdict):
        return () if message.reference is None else (message.reference,)
    return message.references if isinstance(message, References) else ()


def has_manifest(message: AnyMessage) -> bool:
    """True when the one frame of ``message`` is an encoded weight manifest."""
    if isinstance(message, WeightNotice):
        return message.announcement is not None
    return isinstance(message, PublishWeights)


__all__ = [
    "MAX_BATCH_REQUESTS",
    "SCHEMA",
    "WITH_FRAMES",
    "Ack",
    "Acks",
    "AnyMessage",
    "Batch",
    "BatchedRequest",
    "CommitCheckpoint",
    "CommitStep",
    "Credit",
    "DescribeGroups",
    "EndRun",
    "Ended",
    "EvictGroups",
    "FetchReferences",
    "FetchRollouts",
    "Fleet",
    "FleetMember",
    "GetFleet",
    "GetStatus",
    "GetStores",
    "GroupCounts",
    "GroupIds",
    "Groups",
    "Heartbeat",
    "HeartbeatReply",
    "Indices",
    "Lease",
    "LeasePrompts",
    "LeaseRollouts",
    "ListEnded",
    "Message",
    "NamedCount",
    "Names",
    "Promise",
    "PromptLease",
    "PromptLeases",
    "PublishWeights",
    "PullGroups",
    "PutRollouts",
    "References",
    "Refused",
    "Register",
    "Registered",
    "Reply",
    "ReportLost",
    "ReportWeights",
    "Request",
    "ReserveBytes",
    "ResumeLearner",
    "ReturnLease",
    "RolloutLease",
    "RolloutLeases",
    "Rollouts",
    "SetReference",
    "Status",
    "SteppedBatch",
    "StoreAddress",
    "Stores",
    "SubmitRollout",
    "SubmitVerdict",
    "TransferGroup",
    "WaitSeconds",
    "WatchWeights",
    "WeightNotice",
    "has_manifest",
    "references_in",
    "rollouts_in",
]
