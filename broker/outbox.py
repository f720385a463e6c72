"""Replies of a turn, held back until its events are durable. Pure."""

from __future__ import annotations

import msgspec

from broker.exchange import Answer
from common.messages import (
    Ack,
    Acks,
    Fleet,
    HeartbeatReply,
    Refused,
    Registered,
    Status,
    Stores,
)

_HARMLESS = frozenset((Registered, HeartbeatReply, Status, Fleet, Stores, Refused))


class Outgoing(msgspec.Struct, frozen=True):
    """One message to send; request id 0 where the message names the requests itself."""

    peer: bytes
    request_id: int
    answer: Answer


class Outbox:
    """Gathers the answers of a turn; acknowledgements to one peer leave as one message."""

    def __init__(self) -> None:
        self._answers: list[Outgoing] = []
        self._acks: dict[bytes, list[tuple[int, Ack]]] = {}

    def add(self, peer: bytes, request_id: int, answer: Answer) -> None:
        """Take in one answer."""
        message = answer.message
        if type(message) is Ack:
            self._acks.setdefault(peer, []).append((request_id, message))
        else:
            self._answers.append(Outgoing(peer, request_id, answer))

    def acknowledges(self, peer: bytes) -> bool:
        """Whether ``peer`` is told anything that can carry credit."""
        return peer in self._acks

    def give_credit(self, peer: bytes, num_bytes: int) -> None:
        """Let the first acknowledgement to ``peer`` carry credit."""
        request_id, ack = self._acks[peer][0]
        self._acks[peer][0] = (request_id, msgspec.structs.replace(ack, credit_bytes=num_bytes))

    def take_harmless(self) -> list[Outgoing]:
        """The answers that promise nothing and tell of nothing that could be forgotten."""
        answers, self._answers = self._answers, []
        harmless: list[Outgoing] = []
        for item in answers:
            is_harmless = type(item.answer.message) in _HARMLESS
            (harmless if is_harmless else self._answers).append(item)
        return harmless

    def take(self) -> list[Outgoing]:
        """All that was added, acknowledgements first."""
        outgoing = [_acknowledge(peer, acks) for peer, acks in self._acks.items()]
        outgoing += self._answers
        self._answers, self._acks = [], {}
        return outgoing


def _acknowledge(peer: bytes, acks: list[tuple[int, Ack]]) -> Outgoing:
    if len(acks) == 1:
        ((request_id, ack),) = acks
        return Outgoing(peer, request_id, Answer(ack))
    return Outgoing(peer, 0, Answer(Acks(acks=tuple(acks))))
