"""Rollout payloads as records of a log, and a small cache of the newest ones."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import msgspec

from broker.journal.records import Key
from common.codec import Buffer
from common.types import ReferenceHeader, RolloutHeader, RolloutId, WeightVersion

Payload = tuple[RolloutHeader, list[memoryview]]
"""Header and frames."""

_HEADER_BYTES = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RolloutHeader)
_reference_decoder = msgspec.msgpack.Decoder(ReferenceHeader)
_REFERENCE = 1 << 12
"""Above every index."""


def key_of(rollout_id: RolloutId) -> Key:
    """Under which key a rollout is kept: it is dropped with its group."""
    return rollout_id.group_id, rollout_id.index, rollout_id.attempt


def reference_key_of(rollout_id: RolloutId, version: WeightVersion) -> Key:
    """Under which key log-probabilities of one reference are kept: no rollout has such an index."""
    place = _REFERENCE | version.policy_step % 2**32 << 13 | version.incarnation % 2**16 << 45
    return rollout_id.group_id, place | rollout_id.index, rollout_id.attempt


def is_reference(key: Key) -> bool:
    """Whether reference log-probabilities are kept under ``key``, and no rollout."""
    return bool(key[1] & _REFERENCE)


def rollout_of(key: Key) -> Key:
    """Group, index and attempt of the rollout that a key of reference log-probabilities is for."""
    return key[0], key[1] % _REFERENCE, key[2]


def pack_reference(header: ReferenceHeader, frame: Buffer) -> list[Buffer]:
    """Contents of the record of reference log-probabilities; the frame is not copied."""
    encoded = _encoder.encode(header)
    return [_HEADER_BYTES.pack(len(encoded)), encoded, frame]


def unpack_reference(contents: memoryview) -> tuple[ReferenceHeader, memoryview]:
    """What :func:`pack_reference` packed, without a copy."""
    (size,) = _HEADER_BYTES.unpack_from(contents)
    end = _HEADER_BYTES.size + size
    header = _reference_decoder.decode(contents[_HEADER_BYTES.size : end])
    return header, contents[end : end + header.frame_bytes()]


def pack_payload(header: RolloutHeader, frames: Sequence[Buffer]) -> list[Buffer]:
    """Contents of the record of a payload; the frames are not copied."""
    encoded = _encoder.encode(header)
    return [_HEADER_BYTES.pack(len(encoded)) + encoded, *frames]


def unpack_payload(contents: memoryview) -> Payload:
    """What :func:`pack_payload` packed, without a copy."""
    header = unpack_header(contents)
    (start,) = _HEADER_BYTES.unpack_from(contents)
    start += _HEADER_BYTES.size
    frames = []
    for size in header.frame_bytes():
        frames.append(contents[start : start + size])
        start += size
    return header, frames


def unpack_header(contents: memoryview) -> RolloutHeader:
    """The header alone."""
    (size,) = _HEADER_BYTES.unpack_from(contents)
    return _decoder.decode(contents[_HEADER_BYTES.size : _HEADER_BYTES.size + size])


def _bytes_of(frame: Buffer) -> memoryview:
    """A view of bytes; a frame that was received is one already."""
    if isinstance(frame, memoryview) and frame.format == "B" and frame.ndim == 1:
        return frame
    return memoryview(frame).cast("B")


class PayloadCache:
    """The newest payloads as the frames that arrived, up to a number of bytes.

    A verifier reads a rollout soon after it was written, and the learner soon after that.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._payloads: OrderedDict[Key, tuple[Payload, int]] = OrderedDict()
        self._keys: dict[int, dict[Key, None]] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of all frames in the cache."""
        return self._num_bytes

    def get(self, key: Key) -> Payload | None:
        """The payload of ``key``, if it is still here."""
        found = self._payloads.get(key)
        return None if found is None else found[0]

    def add(self, key: Key, header: RolloutHeader, frames: Sequence[Buffer]) -> None:
        """Keep a payload; the oldest ones leave to make room."""
        if key in self._payloads:
            self._remove(key)
        views = list(map(_bytes_of, frames))
        size = sum(map(len, views))
        self._payloads[key] = (header, views), size
        self._keys.setdefault(key[0], {})[key] = None
        self._num_bytes += size
        while self._num_bytes > self._max_bytes:
            self._remove(next(iter(self._payloads)))

    def drop(self, groups: Iterable[int]) -> None:
        """Forget the payloads of these groups."""
        for group in groups:
            for key in list(self._keys.get(group, ())):
                self._remove(key)

    def _remove(self, key: Key) -> None:
        _, size = self._payloads.pop(key)
        self._num_bytes -= size
        keys = self._keys[key[0]]
        del keys[key]
        if not keys:
            del self._keys[key[0]]
