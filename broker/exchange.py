"""One request and its answer, as the handlers see them: no peer, no socket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, TypeVar

from common import messages
from common.codec import Buffer, pack
from common.messages import Reply, Request
from common.types import RolloutHeader

_Message = TypeVar("_Message")


@dataclass(frozen=True, slots=True)
class Ask(Generic[_Message]):
    """One request: who asks (its registered name), what, and when."""

    client: str
    message: _Message
    frames: Sequence[Buffer]
    now_s: float


@dataclass(frozen=True, slots=True)
class Answer:
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


def content_hash(header: RolloutHeader, frames: Sequence[Buffer]) -> str:
    """Hash of a whole rollout: tells a resend from another content under the same id."""
    digest = blake2b(pack(header), digest_size=16)
    for frame in frames:
        digest.update(frame)
    return digest.hexdigest()


def empty_answer(request: Request) -> Answer:
    """What a request gets whose wait ran out."""
    return Answer(_EMPTY[type(request)])


_EMPTY: dict[type[Request], Reply] = {
    messages.LeasePrompts: messages.PromptLeases(),
    messages.LeaseRollouts: messages.RolloutLeases(),
    messages.PullGroups: messages.Groups(),
    messages.WatchWeights: messages.WeightNotice(),
}
