"""Several small requests of one client in one message, as a producer with a backlog sends them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from common.messages.base import Message, RequestId
from common.messages.consumption import (
    CommitCheckpoint,
    CommitStep,
    DescribeGroups,
    EndRun,
    EvictGroups,
    FetchReferences,
    FetchRollouts,
    PullGroups,
    ResumeLearner,
    SetReference,
)
from common.messages.flow import ReserveBytes
from common.messages.generation import LeasePrompts, ReturnLease, SubmitRollout
from common.messages.membership import Heartbeat
from common.messages.payloads import GetStores, ListEnded, ReportLost
from common.messages.verification import LeaseRollouts, SubmitVerdict
from common.messages.watching import GetStatus
from common.messages.weights import GetFleet, ReportWeights, WatchWeights

MAX_BATCH_REQUESTS = 32
"""Of one batch: by then what a message costs by itself is shared by so many that it vanishes."""

BatchedRequest = (
    Heartbeat
    | ReserveBytes
    | LeasePrompts
    | SubmitRollout
    | ReturnLease
    | LeaseRollouts
    | SubmitVerdict
    | PullGroups
    | DescribeGroups
    | FetchRollouts
    | SetReference
    | FetchReferences
    | CommitStep
    | CommitCheckpoint
    | ResumeLearner
    | EvictGroups
    | EndRun
    | WatchWeights
    | ReportWeights
    | GetFleet
    | GetStatus
    | GetStores
    | ListEnded
    | ReportLost
)
"""What may stand in a batch, if no frames follow it: all but registrations and what always has
frames."""


class Batch(Message, frozen=True):
    """Several requests, each with the id under which it is answered, in order.

    It stands for as many messages of one client and is no request itself: its own request id is 0.
    Each is handled, answered and refused as if it had come alone.
    """

    requests: Annotated[
        tuple[tuple[RequestId, BatchedRequest], ...],
        msgspec.Meta(min_length=1, max_length=MAX_BATCH_REQUESTS),
    ]
