"""Base of all messages: schema number, bounds of collections, generic replies."""

from __future__ import annotations

from typing import Annotated

import msgspec

from common.types import Count, Name, Reason, Record

SCHEMA = 1
"""Raised on every incompatible change; unlike peers refuse each other by name."""

Indices = Annotated[tuple[Count, ...], msgspec.Meta(min_length=1, max_length=4096)]
Names = Annotated[tuple[Name, ...], msgspec.Meta(max_length=16384)]
GroupIds = Annotated[tuple[Count, ...], msgspec.Meta(max_length=65536)]
WaitSeconds = Annotated[float, msgspec.Meta(ge=0, le=60)]


class Message(Record, frozen=True, tag=True):
    """Base of the tagged union."""


class Ack(Message, frozen=True):
    """Done, durably. ``outcome`` is ``accepted``, ``duplicate``, ``late`` or ``quarantined``."""

    outcome: Name = "accepted"


class Refused(Message, frozen=True):
    """Not done. ``code`` is for programs, ``reason`` for people."""

    code: Name
    reason: Reason
