"""How the learner asks the broker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from common.codec import Buffer, Decoded
from common.messages import Request


class BrokerClient(Protocol):
    """What the learner needs of :class:`common.sync_channel.SyncChannel`."""

    def request(
        self, message: Request, frames: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Decoded:
        """Send ``message`` and return the reply."""
        ...
