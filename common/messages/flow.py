"""Byte credit on the wire: arrays are sent only against credit that was granted before.

Credit comes with :class:`Registered` and :class:`Ack`; for more than that a producer asks.
"""

from __future__ import annotations

from common.messages.base import Message, WaitSeconds
from common.types import Count, Reason


class ReserveBytes(Message, frozen=True):
    """Ask for credit of ``least`` bytes, or up to ``most``; the oldest wish comes first."""

    least: Count
    most: Count
    wait_s: WaitSeconds


class Credit(Message, frozen=True):
    """Reply to :class:`ReserveBytes`; 0 when the wait ran out, and then ``reason`` says why."""

    num_bytes: Count = 0
    reason: Reason = ""
