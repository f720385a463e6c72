"""Bytes <-> messages: a prelude, a small MessagePack header, raw little-endian array frames.

Frame 0 is a 16-byte prelude (magic, schema, request id), frame 1 the header, the rest are arrays
whose exact lengths the header dictates. Every length is capped *before* anything is decoded,
unknown fields and non-finite numbers are refused, and arrays are never copied.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from common.errors import DecodeError
from common.messages import (
    SCHEMA,
    WITH_FRAMES,
    AnyMessage,
    SubmitVerdict,
    has_manifest,
    references_in,
    rollouts_in,
)
from common.types import RolloutHeader
from common.weight_layout import WeightManifest

Buffer = bytes | bytearray | memoryview
_Frame = TypeVar("_Frame")

MAX_HEADER_BYTES = 8 << 20
MAX_FRAME_BYTES = 256 << 20
MAX_MESSAGE_BYTES = 1 << 30
MAX_FRAMES = 4 * 65536
MAX_STRING_BYTES = 1 << 20

_PRELUDE = struct.Struct("<4sHHQ")
_MAGIC = b"HRCE"
PRELUDE_BYTES = _PRELUDE.size

_encoder = msgspec.msgpack.Encoder()
_message_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


class Decoded(msgspec.Struct, frozen=True):
    """A message as received: who-asked number, typed header, array frames."""

    request_id: int
    message: AnyMessage
    frames: list[memoryview]


def encode(message: AnyMessage, request_id: int, frames: Sequence[Buffer] = ()) -> list[Buffer]:
    """Return the frames to send for ``message``.

    Raises ``ValueError`` when the frames do not match the header or a cap would be exceeded: the
    sender learns it before the peer would have to drop the connection.
    """
    header = pack(message)
    if frames or len(header) > MAX_HEADER_BYTES or _has_frames(message):
        lengths = [memoryview(frame).nbytes for frame in frames]
        problem = _length_problem(message, len(header), lengths)
        if problem:
            raise ValueError(f"cannot send {type(message).__name__}: {problem}")
    return [_PRELUDE.pack(_MAGIC, SCHEMA, 0, request_id), header, *frames]


def encode_alone(record: msgspec.Struct, request_id: int) -> list[Buffer]:
    """The frames of a record that none follow and whose size is bounded by its sender."""
    return [_PRELUDE.pack(_MAGIC, SCHEMA, 0, request_id), pack(record)]


def check_frameless(message: AnyMessage) -> None:
    """Raise :class:`DecodeError` for a message that is not whole without frames."""
    problem = _length_problem(message, 0, ()) if _has_frames(message) else None
    if problem:
        raise DecodeError(f"{type(message).__name__}: {problem}")


def decode(parts: Sequence[Buffer]) -> Decoded:
    """Return the typed message in ``parts``; raises :class:`DecodeError` on anything else."""
    request_id = read_request_id(parts)
    header = parts[1]
    header_bytes = len(header) if isinstance(header, bytes) else memoryview(header).nbytes
    if header_bytes > MAX_HEADER_BYTES:
        raise DecodeError(f"header of {header_bytes} bytes is over the cap {MAX_HEADER_BYTES}")
    message: AnyMessage = _unpack(header, _message_decoder)
    if len(parts) == 2 and not _has_frames(message):
        return Decoded(request_id, message, [])
    frames = [memoryview(part).cast("B") for part in parts[2:]]
    problem = _length_problem(message, header_bytes, [frame.nbytes for frame in frames])
    if problem:
        raise DecodeError(f"{type(message).__name__}: {problem}")
    return Decoded(request_id, message, frames)


def read_request_id(parts: Sequence[Buffer]) -> int:
    """Check the prelude and return the request id, so that even a bad header can be answered."""
    if not 2 <= len(parts) <= MAX_FRAMES + 2:
        raise DecodeError(f"a message has 2 to {MAX_FRAMES + 2} frames, got {len(parts)}")
    prelude = parts[0]
    prelude_bytes = len(prelude) if isinstance(prelude, bytes) else memoryview(prelude).nbytes
    if prelude_bytes != PRELUDE_BYTES:
        raise DecodeError(f"the prelude has {PRELUDE_BYTES} bytes, got {prelude_bytes}")
    magic, schema, _, request_id = _PRELUDE.unpack(prelude)
    if magic != _MAGIC:
        raise DecodeError(f"not a headrace message: magic {magic!r}")
    if schema != SCHEMA:
        raise DecodeError(
            f"peer speaks schema {schema}, this process schema {SCHEMA}: "
            "run the same headrace version everywhere"
        )
    return request_id  # type: ignore[no-any-return] # struct knows no types


def pack(record: msgspec.Struct) -> bytes:
    """MessagePack bytes of a typed record."""
    return _encoder.encode(record)


def unpack(data: Buffer, kind: Any) -> Any:
    """Record of the type (or union of types) ``kind`` in ``data``; raises :class:`DecodeError`."""
    return _unpack(data, _decoder_of(kind))


def _unpack(data: Buffer, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    """Decode in one pass: the types bound every string and collection, a claimed length cannot
    exceed the bytes that are there, and the first byte of a wrong type ends the parse.
    """
    try:
        return decoder.decode(data)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise DecodeError(f"malformed header: {error}") from None


@functools.cache
def _decoder_of(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


def pack_manifest(manifest: WeightManifest) -> bytes:
    """The frame that carries a weight manifest."""
    return pack(manifest)


def unpack_manifest(frame: Buffer) -> WeightManifest:
    """Read the frame that carries a weight manifest; raises :class:`DecodeError`."""
    manifest: WeightManifest = unpack(frame, WeightManifest)
    return manifest


def _has_frames(message: AnyMessage) -> bool:
    """Whether frames may follow; most verdicts have none."""
    if type(message) is SubmitVerdict:
        return message.reference is not None
    return type(message) in WITH_FRAMES


def _length_problem(message: AnyMessage, header_bytes: int, lengths: Sequence[int]) -> str | None:
    """Say what is wrong with the frame lengths, or None."""
    if header_bytes > MAX_HEADER_BYTES:
        return f"header of {header_bytes} bytes is over the cap {MAX_HEADER_BYTES}"
    if len(lengths) > MAX_FRAMES or max(lengths, default=0) > MAX_FRAME_BYTES:
        return f"over {MAX_FRAMES} frames or a frame over {MAX_FRAME_BYTES} bytes"
    if sum(lengths) > MAX_MESSAGE_BYTES:
        return f"{sum(lengths)} bytes of arrays are over the cap {MAX_MESSAGE_BYTES}"
    if has_manifest(message):
        return None if len(lengths) == 1 else f"needs 1 manifest frame, got {len(lengths)}"
    rollouts = rollouts_in(message)
    expected = [size for rollout in rollouts for size in rollout.frame_bytes()]
    if not rollouts:
        expected = [header.frame_bytes() for header in references_in(message)]
    if list(lengths) != expected:
        return f"array frames have {list(lengths)[:6]} bytes, the header says {expected[:6]}"
    return None


def frames_of_each(
    rollouts: Sequence[RolloutHeader], frames: Sequence[_Frame]
) -> Iterator[Sequence[_Frame]]:
    """Cut the frames of one message into those of each of its rollouts, in order."""
    start = 0
    for rollout in rollouts:
        yield frames[start : start + rollout.num_frames]
        start += rollout.num_frames
