"""What a backend and its model process say to each other, over two pipes.

A message is a typed header and raw little-endian arrays, as on the wire between roles. The process
is our own child and holds only weights, so the lengths guard against accidents.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from common.arrays import Float32Array, Int32Array
from common.codec import Buffer
from common.errors import DecodeError
from common.types import Count, FiniteFloat, Name, Reason, Record, WeightVersion

MAX_PARTS = 8
MAX_PART_BYTES = 1 << 30
_LENGTH = struct.Struct("<I")


class ModelSpec(Record, frozen=True):
    """One model that a process may be asked to run; it is loaded when first asked for."""

    name: Name
    path: str
    head: str
    """``score``: outputs of a classifier's head; ``logprobs``: of the token that follows."""
    device: str
    dtype: str
    max_tokens: Count
    weights: str = ""
    """Directory of published versions, for a model whose weights are replaced."""


class Setup(Record, frozen=True):
    """First message to a process."""

    models: tuple[ModelSpec, ...]
    num_threads: Count


class TreeShape(Record, frozen=True):
    """A prefix and the branches that go on from it, in tokens."""

    prefix_length: Count
    branch_lengths: tuple[Count, ...]


class ForwardRequest(Record, frozen=True):
    """Run one packed batch.

    Arrays that follow: int32 token ids, row by row and tree by tree, each prefix once; int32 [N]
    places in the flattened rows; int32 [N] tokens that these places predict (``logprobs``) or [0].
    """

    model: Name
    row_length: Count
    rows: tuple[tuple[TreeShape, ...], ...]
    temperature: FiniteFloat = 1.0
    version: WeightVersion | None = None
    """Weights to compute with; None for those of the model directory."""


class ForwardReply(Record, frozen=True):
    """Outputs float32 [num_outputs, num_labels] follow, unless ``failure`` says why not."""

    num_outputs: Count = 0
    num_labels: Count = 0
    failure: Reason = ""
    compute_s: FiniteFloat = 0.0
    weight_bytes: Count = 0
    """Bytes that the model holds on its device."""
    loaded: bool = False
    """The model was loaded for this request."""
    out_of_memory: bool = False
    """The failure is that the device has no room for so many tokens at once."""


def joined(parts: Sequence[Buffer]) -> bytes:
    """``parts`` as one message."""
    views = [memoryview(part).cast("B") for part in parts]
    lengths = b"".join(_LENGTH.pack(view.nbytes) for view in views)
    return b"".join([_LENGTH.pack(len(views)), lengths, *views])


def read_parts(stream: BinaryIO) -> list[bytes] | None:
    """The next message; None at the end of the stream. Raises :class:`DecodeError`."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    count = _checked_count(head)
    sizes = _checked_sizes(stream.read(count * _LENGTH.size), count)
    parts = [stream.read(size) for size in sizes]
    return parts if [len(part) for part in parts] == sizes else None


async def receive_parts(stream: asyncio.StreamReader) -> list[bytes]:
    """The next message; raises ``IncompleteReadError`` at the end and :class:`DecodeError`."""
    count = _checked_count(await stream.readexactly(_LENGTH.size))
    sizes = _checked_sizes(await stream.readexactly(count * _LENGTH.size), count)
    return [await stream.readexactly(size) for size in sizes]


def int32_array(part: bytes) -> Int32Array:
    """Array view of one part."""
    return np.frombuffer(part, dtype="<i4")


def output_array(reply: ForwardReply, part: bytes) -> Float32Array:
    """Outputs [num_outputs, num_labels]; raises :class:`DecodeError` for another size."""
    outputs = np.frombuffer(part, dtype="<f4")
    if outputs.size != reply.num_outputs * reply.num_labels:
        raise DecodeError(f"{outputs.size} outputs, the header says {reply.num_outputs}")
    return outputs.reshape(reply.num_outputs, reply.num_labels)


def _checked_count(data: bytes) -> int:
    (count,) = _LENGTH.unpack(data)
    if not 1 <= count <= MAX_PARTS:
        raise DecodeError(f"a message has 1 to {MAX_PARTS} parts, got {count}")
    return int(count)


def _checked_sizes(data: bytes, count: int) -> list[int]:
    if len(data) < count * _LENGTH.size:
        raise DecodeError("the message ends in its lengths")
    sizes = [size for (size,) in _LENGTH.iter_unpack(data)]
    if max(sizes) > MAX_PART_BYTES:
        raise DecodeError(f"a part of {max(sizes)} bytes is over the cap {MAX_PART_BYTES}")
    return sizes
