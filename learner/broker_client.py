"""How the learner asks the broker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from common.codec import Buffer, Decoded
from common.messages import Request

FETCHED_AT_ONCE = 512
"""Rollouts of one request: keeps replies far below the message cap."""
_Item = TypeVar("_Item")


class BrokerClient(Protocol):
    """What the learner needs of :class:`common.sync_channel.SyncChannel`."""

    def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        """Send ``message`` and return the reply."""
        ...


def in_portions(wanted: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """``wanted`` in order, at most ``FETCHED_AT_ONCE`` in a request; none is empty."""
    for start in range(0, len(wanted), FETCHED_AT_ONCE):
        yield wanted[start : start + FETCHED_AT_ONCE]
