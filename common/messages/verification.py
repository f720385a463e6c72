"""Hop broker -> verifier -> broker: rollouts out, verdicts in."""

from __future__ import annotations

from typing import Annotated

import msgspec

from common.messages.base import Message, WaitSeconds
from common.types import (
    Count,
    Prompt,
    Record,
    ReferenceHeader,
    RolloutHeader,
    RolloutId,
    Verdict,
    WeightVersion,
)


class LeaseRollouts(Message, frozen=True):
    """A verifier with room for ``max_rollouts`` asks for work."""

    max_rollouts: Count
    wait_s: WaitSeconds


class RolloutLease(Record, frozen=True):
    """Verify one rollout; ``verify_attempt`` fences a late verdict.

    With a ``reference_version`` its log-probabilities under that reference policy are wanted, too;
    with a ``verdict`` nothing else is: the verdict stands, and is sent back as it came.
    """

    prompt: Prompt
    rollout: RolloutHeader
    verify_attempt: Count
    reference_version: WeightVersion | None = None
    verdict: Verdict | None = None


class RolloutLeases(Message, frozen=True):
    """Reply to :class:`LeaseRollouts`: the frames of each rollout, in order."""

    leases: Annotated[tuple[RolloutLease, ...], msgspec.Meta(max_length=4096)] = ()


class SubmitVerdict(Message, frozen=True):
    """A typed verdict; ``infra-error`` sends the rollout to another verifier.

    A ``reference`` comes with its log-probabilities as the one frame. Where it was wanted and is
    missing, or is of a reference that was replaced meanwhile, the verdict stands and the rollout
    is leased again for the reference alone.
    """

    rollout_id: RolloutId
    verify_attempt: Count
    verdict: Verdict
    reference: ReferenceHeader | None = None
