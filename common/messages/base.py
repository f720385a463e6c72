"""Base of all messages: schema number, bounds of collections, generic replies."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from common.types import Count, Name, Reason, Record

SCHEMA = 4
"""Raised with every change of a message; unlike peers refuse each other by name."""

Indices = Annotated[tuple[Count, ...], msgspec.Meta(min_length=1, max_length=4096)]
Names = Annotated[tuple[Name, ...], msgspec.Meta(max_length=16384)]
RequestId = Annotated[int, msgspec.Meta(ge=0)]
GroupIds = Annotated[tuple[Count, ...], msgspec.Meta(max_length=65536)]
WaitSeconds = Annotated[float, msgspec.Meta(ge=0, le=60)]


class Message(Record, frozen=True, tag=True):
    """Base of the tagged union."""


Promise = Literal["", "durable", "relaxed", "direct"]
"""What an acknowledged rollout survives: ``durable`` a crash of the machine, ``relaxed`` a crash of
the process, ``direct`` neither (its arrays are in the memory of the actor that sampled it)."""


class Ack(Message, frozen=True):
    """Done. ``outcome`` is ``accepted``, ``duplicate``, ``late`` or ``quarantined``.

    ``promise`` says what an accepted rollout survives; "" where the message carried none.
    ``credit_bytes`` is credit that the sender gets back. ``num_journal_events`` is how long the
    broker's journal is with what the learner has committed; 0 where nothing was added to it.
    """

    outcome: Name = "accepted"
    promise: Promise = ""
    credit_bytes: Count = 0
    num_journal_events: Count = 0


class Acks(Message, frozen=True):
    """Several :class:`Ack`, each with the id of the request that it answers.

    It stands for as many replies to one peer and is no reply itself: its own request id is 0.
    """

    acks: Annotated[tuple[tuple[RequestId, Ack], ...], msgspec.Meta(min_length=1)]


class Refused(Message, frozen=True):
    """Not done. ``code`` is for programs, ``reason`` for people."""

    code: Name
    reason: Reason
