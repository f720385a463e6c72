"""Announcements of weight versions and proofs of their arrival; never the weights themselves."""

from __future__ import annotations

from typing import Annotated

import msgspec

from common.messages.base import Message, Names, WaitSeconds
from common.types import Count, FiniteFloat, Name, Reason, Record, Role, Text, WeightVersion


class TransferGroup(Record, frozen=True):
    """A numbered process group that will carry one or more publishes.

    Rank 0 is the learner; member ``i`` of ``members`` is rank ``i + 1``.
    """

    number: Count
    store_host: Name
    store_port: Count
    token: Name
    members: Names


class PublishWeights(Message, frozen=True):
    """The learner announces ``version``; the manifest is the one frame.

    ``directory`` is where any actor can pull the version; ``transfer`` is None when nobody is to be
    sent to.
    """

    version: WeightVersion
    manifest_digest: Name
    directory: Text = ""
    transfer: TransferGroup | None = None


class WatchWeights(Message, frozen=True):
    """An actor asks for the newest announcement that is not ``known``."""

    known: WeightVersion | None
    wait_s: WaitSeconds


class WeightNotice(Message, frozen=True):
    """Reply to :class:`WatchWeights`; an announcement comes with its manifest as the one frame."""

    announcement: PublishWeights | None = None


class ReportWeights(Message, frozen=True):
    """An actor proved (or failed to prove) that it serves ``version``."""

    version: WeightVersion
    proven: bool
    stall_s: FiniteFloat = 0.0
    source: Name = "pull"
    reason: Reason = ""


class GetFleet(Message, frozen=True):
    """Ask which actors are alive."""


class FleetMember(Record, frozen=True):
    """One live client."""

    role: Role
    name: Name
    host: Name
    pid: Count
    silent_s: FiniteFloat
    serving: WeightVersion | None = None


class Fleet(Message, frozen=True):
    """Reply to :class:`GetFleet`."""

    members: Annotated[tuple[FleetMember, ...], msgspec.Meta(max_length=16384)] = ()
