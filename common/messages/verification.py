"""Hop broker -> verifier -> broker: rollouts out, verdicts in."""

from __future__ import annotations

from typing import Annotated

import msgspec

from common.messages.base import Message, WaitSeconds
from common.types import Count, Prompt, Record, RolloutHeader, RolloutId, Verdict


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
