"""One request and its answer, as the handlers see them: no peer, no socket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from common import messages
from common.codec import Buffer
from common.messages import Promise, Reply, Request

_Message = TypeVar("_Message")


class Ask(msgspec.Struct, Generic[_Message], frozen=True):
    """One request: who asks (its registered name), what, and when."""

    client: str
    message: _Message
    frames: Sequence[Buffer]
    now_s: float


class Answer(msgspec.Struct, frozen=True):
    """One reply with its frames."""

    message: Reply
    frames: Sequence[Buffer] = ()


@dataclass(frozen=True, slots=True)
class Identity:
    """What a client learns at registration."""

    run_id: str
    broker_nonce: str
    heartbeat_s: float
    lease_s: float
    promise: Promise = "durable"
    """What a rollout survives whose arrays are with the broker."""
    store_promise: Promise = "durable"
    """What one survives whose arrays are in a store."""


def empty_answer(request: Request) -> Answer:
    """What a request gets whose wait ran out."""
    return Answer(_EMPTY[type(request)])


_EMPTY: dict[type[Request], Reply] = {
    messages.LeasePrompts: messages.PromptLeases(),
    messages.LeaseRollouts: messages.RolloutLeases(),
    messages.PullGroups: messages.Groups(),
    messages.WatchWeights: messages.WeightNotice(),
}
