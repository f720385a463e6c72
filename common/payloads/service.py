"""What a payload server answers to each request: no sockets, no clocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.codec import Buffer, frames_of_each
from common.errors import RefusedError
from common.messages import (
    Ack,
    AnyMessage,
    FetchRollouts,
    PutRollouts,
    Refused,
    Reply,
    Rollouts,
)
from common.payloads.backing import Backing
from common.types import RolloutHeader


@dataclass(frozen=True, slots=True)
class Answered:
    """One reply with its frames; ``waits`` until the commit of this turn."""

    message: Reply
    frames: Sequence[Buffer] = ()
    waits: bool = False


class PayloadService:
    """Answers requests from a :class:`Backing`."""

    def __init__(self, backing: Backing, *, takes_puts: bool = True) -> None:
        """Without ``takes_puts`` only this process itself adds to ``backing``."""
        self.backing = backing
        self._takes_puts = takes_puts

    def handle(self, message: AnyMessage, frames: Sequence[Buffer]) -> Answered:
        """The answer to one message; what no payload server knows is refused."""
        try:
            if isinstance(message, PutRollouts) and self._takes_puts:
                return self._put(message, frames)
            if isinstance(message, FetchRollouts):
                return self._fetch(message)
        except RefusedError as error:
            return Answered(Refused(code=error.code, reason=error.reason))
        kind = type(message).__name__
        return Answered(Refused(code="malformed", reason=f"this payload server takes no {kind}"))

    def _put(self, message: PutRollouts, frames: Sequence[Buffer]) -> Answered:
        own_frames = frames_of_each(message.rollouts, frames)
        for header, own in zip(message.rollouts, own_frames, strict=True):
            self.backing.add(header, own)
        return Answered(Ack(promise=self.backing.promise), waits=True)

    def _fetch(self, message: FetchRollouts) -> Answered:
        """What there is of the rollouts asked for: the headers say which."""
        headers: list[RolloutHeader] = []
        frames: list[Buffer] = []
        for rollout_id in message.rollout_ids:
            try:
                header, arrays = self.backing.payload(rollout_id)
            except KeyError:
                continue
            headers.append(header)
            frames.extend(arrays)
        return Answered(Rollouts(rollouts=tuple(headers)), frames)
