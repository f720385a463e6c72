"""Requests of one client that have no reply yet, and the messages that they leave in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.batching import MAX_BATCHED_BYTES, encode_batch
from common.codec import Buffer, Decoded
from common.errors import DecodeError, ForbiddenError, RefusedError
from common.flow_control import NO_CREDIT
from common.messages import MAX_BATCH_REQUESTS, Refused


@dataclass(slots=True)
class PendingRequest:
    """A request that has no reply yet, kept whole so that it can be sent again."""

    request_id: int
    parts: list[Buffer]
    reply: asyncio.Future[Decoded]
    opens: bool
    """Whether it is a registration, which every socket begins with."""
    num_bytes: int = 0
    """Bytes of arrays that were sent against credit of one connection, and void on the next."""

    @property
    def fits_batch(self) -> bool:
        """Whether it may leave together with others."""
        is_small = len(self.parts) == 2 and len(self.parts[1]) <= MAX_BATCHED_BYTES
        return is_small and not self.opens


class PendingRequests(dict[int, PendingRequest]):
    """Pending requests by their id, in the order in which they were made."""

    def settle(self, request_id: int, outcome: Decoded | DecodeError) -> None:
        """Give a reply to whoever waits for it; a second reply to one request is dropped."""
        pending = self.get(request_id)
        if pending is None or pending.reply.done():
            return
        if isinstance(outcome, DecodeError):
            pending.reply.set_exception(outcome)
        else:
            pending.reply.set_result(outcome)

    def void_credit(self) -> None:
        """The connection is another one: what was to leave against credit has to ask anew."""
        for request_id, pending in list(self.items()):
            if pending.num_bytes:
                void = Refused(code=NO_CREDIT, reason="the connection is another one")
                self.settle(request_id, Decoded(request_id, void, []))

    def fail(self, error: Exception) -> None:
        """Let every request end with ``error``."""
        for pending in self.values():
            if not pending.reply.done():
                pending.reply.set_exception(error)

    def cancel(self) -> None:
        """Let nobody wait any longer."""
        for pending in self.values():
            pending.reply.cancel()


def messages_of(requests: Sequence[PendingRequest]) -> Iterator[list[Buffer]]:
    """The frames of these requests in order, small ones that follow each other in batches."""
    small: list[PendingRequest] = []
    for pending in requests:
        if small and (len(small) == MAX_BATCH_REQUESTS or not pending.fits_batch):
            yield _batch_of(small)
            small = []
        if pending.fits_batch:
            small.append(pending)
        else:
            yield pending.parts
    if small:
        yield _batch_of(small)


def _batch_of(small: Sequence[PendingRequest]) -> list[Buffer]:
    if len(small) == 1:
        return small[0].parts
    return encode_batch([(pending.request_id, pending.parts[1]) for pending in small])


def refusal_error(refused: Refused) -> ForbiddenError | RefusedError:
    """What a refusal means to whoever asked."""
    if refused.code == "forbidden":
        return ForbiddenError(f"the broker refuses: {refused.reason}")
    return RefusedError(refused.code, refused.reason)
