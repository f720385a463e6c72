"""Everything said between a client and the broker: one class a hop, request and reply.

Every exchange is a request with one reply. Work is pulled: a request for ``max_*`` items is the
credit that the client grants, and the broker holds the request for up to ``wait_s`` until it has
something to give. All requests may be sent again after a reconnect: the broker treats a repeated
request as the same one (submissions by rollout id, commits by step).
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
from common.messages.consumption import (
    CommitCheckpoint,
    CommitStep,
    DescribeGroups,
    EndRun,
    EvictGroups,
    FetchRollouts,
    Groups,
    PullGroups,
    ResumeLearner,
    Rollouts,
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
from common.types import RolloutHeader

Request = (
    Register
    | Heartbeat
    | ReserveBytes
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
    | PutRollouts
    | GetStores
    | ListEnded
    | ReportLost
)
Reply = (
    Registered
    | HeartbeatReply
    | Credit
    | PromptLeases
    | RolloutLeases
    | Groups
    | Rollouts
    | WeightNotice
    | Fleet
    | Status
    | Stores
    | Ended
    | Ack
    | Acks
    | Refused
)
AnyMessage = Request | Reply

WITH_FRAMES = frozenset(
    (SubmitRollout, RolloutLeases, PutRollouts, Rollouts, PublishWeights, WeightNotice)
)
"""Messages that array or manifest frames may follow; every other has none."""


def rollouts_in(message: AnyMessage) -> tuple[RolloutHeader, ...]:
    """The rollouts whose arrays travel as frames of ``message``, three frames each, in order.

    A submission or a lease carries none of a rollout that a payload server holds.
    """
    if isinstance(message, SubmitRollout):
        return () if message.rollout.store else (message.rollout,)
    if isinstance(message, RolloutLeases):
        return tuple(lease.rollout for lease in message.leases if not lease.rollout.store)
    if isinstance(message, Rollouts | PutRollouts):
        return message.rollouts
    return ()


def has_manifest(message: AnyMessage) -> bool:
    """True when the one frame of ``message`` is an encoded weight manifest."""
    if isinstance(message, WeightNotice):
        return message.announcement is not None
    return isinstance(message, PublishWeights)


__all__ = [
    "SCHEMA",
    "WITH_FRAMES",
    "Ack",
    "Acks",
    "AnyMessage",
    "CommitCheckpoint",
    "CommitStep",
    "Credit",
    "DescribeGroups",
    "EndRun",
    "Ended",
    "EvictGroups",
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
    "rollouts_in",
]
