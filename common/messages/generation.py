"""Hop broker -> actor -> broker: prompts out, rollouts in."""

from __future__ import annotations

from typing import Annotated

import msgspec

from common.messages.base import Message, WaitSeconds
from common.messages.membership import Lease
from common.types import Count, Prompt, Reason, Record, RolloutHeader, WeightVersion


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
    """One finished rollout, its arrays in the frames.

    A rollout with a ``store`` comes without frames; ``content_hash`` is then that of its arrays.
    """

    rollout: RolloutHeader
    content_hash: Annotated[str, msgspec.Meta(max_length=128)] = ""


class ReturnLease(Message, frozen=True):
    """The client gives work back unfinished; ``error`` counts towards the dead letter if set."""

    lease: Lease
    error: Reason = ""
