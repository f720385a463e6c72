"""Damaged messages against the decoder: one kind of error, no memory kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress

from common.batching import decode_requests
from common.codec import Decoded, decode, encode, unpack, unpack_manifest
from common.errors import DecodeError
from common.messages import MAX_BATCH_REQUESTS
from common.types import RolloutHeader, Verdict
from tests.fuzz.mutations import Parts

_RECORDS = (RolloutHeader, Verdict)


def feed_decoder(messages: Iterator[Parts]) -> Counter[str]:
    """Decode all; whatever is not a message raises :class:`DecodeError` and nothing else.

    What decodes must encode again to an equal message: the decoder invents nothing.
    """
    tally: Counter[str] = Counter()
    for parts in messages:
        feed_batches(parts)
        try:
            decoded = decode(parts)
        except DecodeError:
            tally["refused"] += 1
        else:
            tally["decoded"] += 1
            again = encode(decoded.message, decoded.request_id, decoded.frames)
            assert decode(again).message == decoded.message
        if len(parts) > 1:
            feed_records(parts[1:])
    return tally


def feed_batches(parts: Sequence[bytes]) -> None:
    """Every request has an answer: what is no message is one error, and nothing is raised."""
    taken = decode_requests(parts)
    assert 1 <= len(taken) <= MAX_BATCH_REQUESTS
    for request_id, decoded in taken:
        if isinstance(decoded, Decoded):
            again = encode(decoded.message, decoded.request_id, decoded.frames)
            assert decode_requests(again) == [(request_id, decoded)]


def feed_records(frames: Sequence[bytes]) -> None:
    """The same bytes as records that stand alone elsewhere."""
    for frame in frames[:3]:
        for kind in _RECORDS:
            with suppress(DecodeError):
                unpack(frame, kind)
        with suppress(DecodeError):
            unpack_manifest(frame)
