"""Several requests in one message: how a client packs them and a server takes them apart.

A batch is made of headers that are encoded already and is decoded in one pass. Where one request of
it is malformed, each is decoded by itself instead: the others are handled as if they had come
alone, and the bad one is refused under its own id. Only a batch whose envelope is broken is refused
as a whole, like a message whose prelude is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from common.codec import (
    MAX_HEADER_BYTES,
    Buffer,
    Decoded,
    check_frameless,
    decode,
    encode_alone,
    read_request_id,
    unpack,
)
from common.errors import DecodeError
from common.messages import MAX_BATCH_REQUESTS, Batch, BatchedRequest
from common.messages.base import RequestId
from common.sockets import request_id_or_zero
from common.types import Record

MAX_BATCHED_BYTES = 4096
"""Of the header of one request in a batch; a larger one is worth a message of its own."""


class _Envelope(Record, frozen=True, tag=Batch.__struct_config__.tag):
    """A :class:`Batch` whose requests are not decoded."""

    requests: Annotated[
        tuple[tuple[RequestId, msgspec.Raw], ...],
        msgspec.Meta(min_length=1, max_length=MAX_BATCH_REQUESTS),
    ]


def encode_batch(requests: Sequence[tuple[int, Buffer]]) -> list[Buffer]:
    """The frames of one message for these requests: the id and encoded header of each, in order.

    There are 1 to ``MAX_BATCH_REQUESTS`` of them, none with frames.
    """
    entries = tuple((request_id, msgspec.Raw(header)) for request_id, header in requests)
    return encode_alone(_Envelope(requests=entries), 0)


def decode_requests(parts: Sequence[Buffer]) -> list[tuple[int, Decoded | DecodeError]]:
    """The requests in one message, each with its id; the error of one that is malformed."""
    try:
        decoded = decode(parts)
    except DecodeError as error:
        return _one_by_one(parts) or [(request_id_or_zero(parts), _bare(error))]
    if not isinstance(decoded.message, Batch):
        return [(decoded.request_id, decoded)]
    return [(number, _alone(number, request)) for number, request in decoded.message.requests]


def _alone(request_id: int, request: BatchedRequest) -> Decoded | DecodeError:
    """One request as if it had come by itself."""
    try:
        check_frameless(request)
    except DecodeError as error:
        return _bare(error)
    return Decoded(request_id, request, [])


def _one_by_one(parts: Sequence[Buffer]) -> list[tuple[int, Decoded | DecodeError]]:
    """The requests of a batch that does not decode as a whole; none if it is no batch."""
    if len(parts) != 2 or memoryview(parts[1]).nbytes > MAX_HEADER_BYTES:
        return []
    try:
        read_request_id(parts)
        envelope: _Envelope = unpack(parts[1], _Envelope)
    except DecodeError:
        return []
    return [(number, _read(number, header)) for number, header in envelope.requests]


def _read(request_id: int, header: msgspec.Raw) -> Decoded | DecodeError:
    try:
        return _alone(request_id, unpack(header, BatchedRequest))
    except DecodeError as error:
        return _bare(error)


def _bare(error: DecodeError) -> DecodeError:
    """The same without its traceback, whose frames lead back to whoever keeps the error.

    That would be a cycle, with the message in it, and a busy broker looks for none.
    """
    return DecodeError(str(error))
