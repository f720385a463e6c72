"""What can happen to the ledger: one record an event, as written to the journal.

An event carries its outcome (attempt, deadline), never the rule that led to it, so that replaying
a journal under a changed configuration rebuilds the same state.
"""

from __future__ import annotations

import enum

from common.messages import GroupIds, Indices, PublishWeights
from common.types import (
    Count,
    EvictReason,
    Name,
    Prompt,
    Reason,
    Record,
    RolloutHeader,
    Verdict,
    WeightVersion,
)


class Counter(enum.Enum):
    """Occurrences that change no group."""

    DUPLICATE = "duplicate"
    LATE = "late"
    QUARANTINED = "quarantined"
    WEIGHT_SYNC = "weight_sync"
    WEIGHT_PROOF_FAILED = "weight_proof_failed"


class Event(Record, frozen=True, tag=True):
    """Base of the tagged union."""


class Admitted(Event, frozen=True):
    """A prompt became a group of ``size`` indices; ids count prompts, so they are the cursor."""

    group_id: Count
    prompt: Prompt
    size: Count


class Leased(Event, frozen=True):
    """``owner``, serving ``version``, samples these indices under ``attempt``."""

    group_id: Count
    indices: Indices
    attempt: Count
    owner: Name
    version: WeightVersion
    deadline_step: Count


class Released(Event, frozen=True):
    """Indices of a generation lease wait again.

    ``lost`` says that the owner vanished; ``error`` is what the owner said when it gave up.
    """

    group_id: Count
    indices: Indices
    attempt: Count
    lost: bool = False
    error: Reason = ""


class Generated(Event, frozen=True):
    """The first complete rollout of an index."""

    rollout: RolloutHeader
    content_hash: Name
    deadline_step: Count


class VerifyLeased(Event, frozen=True):
    """``owner`` verifies the rollout of one index under ``attempt``."""

    group_id: Count
    index: Count
    attempt: Count
    owner: Name


class VerifyReleased(Event, frozen=True):
    """A rollout waits for a verifier again; fields as in :class:`Released`."""

    group_id: Count
    index: Count
    attempt: Count
    lost: bool = False
    error: Reason = ""


class Verified(Event, frozen=True):
    """The first judged verdict of a rollout."""

    group_id: Count
    index: Count
    attempt: Count
    verdict: Verdict


class HandedOver(Event, frozen=True):
    """The consumer received these groups for the batch computed at ``policy_step``."""

    group_ids: GroupIds
    policy_step: Count


class PutBack(Event, frozen=True):
    """Groups that the consumer held are verified groups again."""

    group_ids: GroupIds


class Restamped(Event, frozen=True):
    """A group's deadline changed because its tokens aged at a fork."""

    group_id: Count
    deadline_step: Count


class Stepped(Event, frozen=True):
    """The batch computed at ``policy_step`` is durable; the next one is being computed."""

    policy_step: Count
    group_ids: GroupIds


class Trained(Event, frozen=True):
    """A checkpoint covers every batch before ``policy_step``."""

    policy_step: Count


class Collected(Event, frozen=True):
    """A collector is done with these groups: trained, in a run without a learner."""

    group_ids: GroupIds


class Evicted(Event, frozen=True):
    """Groups left without being trained."""

    group_ids: GroupIds
    reason: EvictReason


class DeadLettered(Event, frozen=True):
    """A group cannot be completed."""

    group_id: Count
    reason: Reason


class Announced(Event, frozen=True):
    """The learner published weights; ``manifest`` is the encoded frame."""

    announcement: PublishWeights
    manifest: bytes


class Resumed(Event, frozen=True):
    """A learner starts at ``checkpoint_step`` and computes ``policy_step`` next; unseals."""

    incarnation: Count
    checkpoint_step: Count
    policy_step: Count
    forked: bool = False


class Sealed(Event, frozen=True):
    """The run ended."""


class CollectorStarted(Event, frozen=True):
    """A collector process with this nonce consumes; it goes on with a run that had ended."""

    nonce: Name


class Counted(Event, frozen=True):
    """One occurrence of something that changes no group."""

    what: Counter


AnyEvent = (
    Admitted
    | Leased
    | Released
    | Generated
    | VerifyLeased
    | VerifyReleased
    | Verified
    | HandedOver
    | PutBack
    | Restamped
    | Stepped
    | Trained
    | Collected
    | Evicted
    | DeadLettered
    | Announced
    | Resumed
    | Sealed
    | CollectorStarted
    | Counted
)
