"""How the learner asks the broker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from common.codec import Buffer, Decoded
from common.messages import Ack, CommitCheckpoint, CommitStep, Request, ResumeLearner
from common.types import Count

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


class Commits:
    """Tells the broker what the learner has made durable, and keeps how long its journal is then.

    A checkpoint holds that number: a journal that is shorter at a later start is an older copy.
    """

    def __init__(self, channel: BrokerClient) -> None:
        self._channel = channel
        self.num_journal_events: Count = 0
        """As the broker told last, or as the checkpoint says that was restored."""

    def tell(self, message: CommitStep | CommitCheckpoint | ResumeLearner) -> None:
        """Commit; raises :class:`RefusedError` when the broker refuses."""
        reply = self._channel.request(message).message
        if isinstance(reply, Ack) and reply.num_journal_events:
            self.num_journal_events = reply.num_journal_events


def in_portions(wanted: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """``wanted`` in order, at most ``FETCHED_AT_ONCE`` in a request; none is empty."""
    for start in range(0, len(wanted), FETCHED_AT_ONCE):
        yield wanted[start : start + FETCHED_AT_ONCE]
