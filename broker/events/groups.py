"""What happens to groups, from admission to their end."""

from __future__ import annotations

from broker.events.base import Event
from common.messages import GroupIds, Indices
from common.types import (
    Count,
    EvictReason,
    Name,
    Prompt,
    Reason,
    Record,
    RolloutHeader,
    SpanNumbers,
    Verdict,
    WeightVersion,
)


class Admitted(Event, frozen=True):
    """A prompt became a group of ``size`` indices.

    ``cursor`` is the place in the sequence of its set, ``position`` that in the list of the set;
    a generated stream has none.
    """

    group_id: Count
    prompt: Prompt
    size: Count
    cursor: Count = 0
    position: Count | None = None


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


class PayloadLost(Event, frozen=True):
    """The arrays of an accepted rollout are gone: its index waits for an actor again."""

    group_id: Count
    index: Count
    attempt: Count


class Verified(Event, frozen=True):
    """The first judged verdict of a rollout, or the same once more with a ``reference``.

    Log-probabilities of that reference policy are kept from here on.
    """

    group_id: Count
    index: Count
    attempt: Count
    verdict: Verdict
    reference: WeightVersion | None = None


class ReferenceWanted(Event, frozen=True):
    """A judged rollout waits for a verifier: it lacks the log-probabilities of the reference."""

    group_id: Count
    index: Count


class GroupJudged(Event, frozen=True):
    """Every answer of a group has a verdict; ``num_passed`` have full reward.

    ``solved_in_a_row`` counts the prompt's visits that solved it, up to this one, and ``retired``
    says that it is not drawn again. ``dropped`` says that all rewards are equal and the group goes.
    """

    group_id: Count
    num_judged: Count
    num_passed: Count
    solved_in_a_row: Count = 0
    retired: bool = False
    dropped: bool = False


class MaskedSpans(Record, frozen=True):
    """Version spans of one answer that are too old for the batch it was handed over for."""

    group_id: Count
    index: Count
    spans: SpanNumbers


class HandedOver(Event, frozen=True):
    """The consumer received these groups for the batch computed at ``policy_step``.

    ``masked`` lists the answers with masked tokens; it replaces what an earlier hand-over masked.
    """

    group_ids: GroupIds
    policy_step: Count
    masked: tuple[MaskedSpans, ...] = ()


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
    """A group cannot be completed; ``errors`` are all that its work ended in, oldest first."""

    group_id: Count
    reason: Reason
    errors: tuple[Reason, ...] = ()
