"""Hop broker -> learner or collector: verified groups out, commits in."""

from __future__ import annotations

from typing import Annotated

import msgspec

from common.messages.base import GroupIds, Message, WaitSeconds
from common.types import (
    Count,
    EvictReason,
    Record,
    ReferenceHeader,
    RolloutHeader,
    RolloutId,
    VerifiedGroup,
    WeightVersion,
)


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
    """Reply to :class:`FetchRollouts`: the frames of each, in the order asked for."""

    rollouts: Annotated[tuple[RolloutHeader, ...], msgspec.Meta(max_length=65536)]


class SetReference(Message, frozen=True):
    """The learner trains with the reference policy ``version``; repeatable.

    Groups are handed over from here on only with log-probabilities of that reference. Rollouts
    judged before are leased to verifiers once more, for these alone.
    """

    version: WeightVersion


class FetchReferences(Message, frozen=True):
    """Ask for the reference log-probabilities of these rollouts."""

    rollout_ids: Annotated[tuple[RolloutId, ...], msgspec.Meta(min_length=1, max_length=65536)]


class References(Message, frozen=True):
    """Reply to :class:`FetchReferences`: one frame a rollout, in the order asked for."""

    references: Annotated[tuple[ReferenceHeader, ...], msgspec.Meta(max_length=65536)]


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
    groups of the lost steps wait again. ``num_journal_events`` is the longest that the checkpoint
    knows the broker's journal to have been; a shorter one is an older copy. 0 asks for no check.
    """

    incarnation: Count
    policy_step: Count
    stepped: Annotated[tuple[SteppedBatch, ...], msgspec.Meta(max_length=65536)] = ()
    forked: bool = False
    num_journal_events: Count = 0


class EvictGroups(Message, frozen=True):
    """The consumer drops these groups for ``reason``."""

    group_ids: GroupIds
    reason: EvictReason


class EndRun(Message, frozen=True):
    """The run is over: in-flight groups become evicted{run_end} and the journal is sealed."""
