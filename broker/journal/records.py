"""Bytes of the log: segment headers and records. Pure.

A segment starts with a header block of 4096 bytes: magic, checksum of the block, format, number,
capacity, salt, owner, and a sequence that all of its records have reached: the file may have been a
segment before, and what it still holds of that has older sequences. Which record will come first
nobody knows yet; that one says it. Records follow, each aligned to 8 bytes:

====== ===== =====================================================================================
offset bytes field
====== ===== =====================================================================================
0      4     magic ``HRJR``
4      4     checksum of bytes 8 to 40, seeded with the XXH3-64 of the salt
8      8     XXH3-64 of the body and its padding
16     8     sequence: one more than the record before, in all segments together
24     8     durable: the last sequence that was known to be on disk when this record was made
32     4     length of the body
36     2     kind
38     2     zero
40     -     body, zeros up to a multiple of 8
====== ===== =====================================================================================

A checksum is the lower half of an XXH3-64. The salt is random and the same in all segments of a
log. It keeps bytes inside a payload from being taken for a record by someone who looks for records
behind a damaged one.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import NamedTuple

from xxhash import xxh3_64, xxh3_64_intdigest

from common.codec import Buffer

FORMAT_VERSION = 3
"""Format 1 was one SQLite file; in format 2 a checkpoint was one record."""

SEGMENT_HEADER_BYTES = 4096
SALT_BYTES = 16
MAX_OWNER_BYTES = 128
MAX_BODY_BYTES = (1 << 32) - 64
RECORD_HEADER_BYTES = 40
MAGIC = b"HRJR"

_SEGMENT_MAGIC = b"HRJOURNL"
_SEGMENT = struct.Struct(f"<8sIIQQ{SALT_BYTES}s{MAX_OWNER_BYTES}sQ")
_RECORD = struct.Struct("<4sIQQQIHH")
_CHECKED = struct.Struct("<QQQIHH")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_KEY = struct.Struct("<QQQ")
_PART = struct.Struct("<QI")
_PADDING = tuple(bytes(-size % 8) for size in range(8))

Key = tuple[int, int, int]
"""Of a keyed record: the group that it is dropped with, then two numbers of the caller's own."""


class Part(NamedTuple):
    """Which part of a checkpoint a record is."""

    first: int
    """Sequence of part 0: the checkpoint replaces the turns before that, no later ones."""
    number: int


class Kind(enum.IntEnum):
    """What a record says."""

    PUT = 1
    """Key and contents of a keyed record; replaces what the key had."""
    TURN = 2
    """Groups whose keyed records are dropped, then contents that matter up to a checkpoint."""
    CHECKPOINT = 3
    """Dropped groups, then the last part of a checkpoint: from here on it counts."""
    FLOOR = 4
    """Number of the first segment that is still needed."""
    SEAL = 5
    """Last record of a segment. It takes no sequence of its own: it has that of the next record."""
    PART = 6
    """An earlier part of a checkpoint; it drops nothing."""


class SealReason(enum.IntEnum):
    """Why a segment ended."""

    FULL = 1
    """The log goes on in the next segment, whose header was durable before this seal was made."""
    CLOSED = 2
    """The log was closed and everything in it was durable."""


class SegmentHeader(NamedTuple):
    """What the first block of a segment says."""

    number: int
    capacity: int
    salt: bytes
    owner: str
    oldest: int = 0
    """Records with a lower sequence are not of this segment but of a former one in its file."""
    format: int = FORMAT_VERSION


class RecordHeader(NamedTuple):
    """The first 40 bytes of a record, without magic and checksum."""

    body_hash: int
    length: int
    sequence: int
    durable: int
    kind: int
    num_bytes: int
    """Bytes of the whole record in its segment."""


def record_bytes(length: int) -> int:
    """Bytes that a record with a body of ``length`` takes."""
    return RECORD_HEADER_BYTES + (length + 7) // 8 * 8


SEAL_BYTES = record_bytes(_U64.size)


# --- segment headers ------------------------------------------------------------------------------


def encode_segment_header(header: SegmentHeader) -> bytes:
    """The first block of a segment."""
    owner = header.owner.encode()
    if len(owner) > MAX_OWNER_BYTES:
        raise ValueError(f"the owner of a log has at most {MAX_OWNER_BYTES} bytes, got {owner!r}")
    fields = (header.format, header.number, header.capacity, header.salt, owner, header.oldest)
    block = bytearray(SEGMENT_HEADER_BYTES)
    _SEGMENT.pack_into(block, 0, _SEGMENT_MAGIC, 0, *fields)
    _U32.pack_into(block, len(_SEGMENT_MAGIC), _checksum(block))
    return bytes(block)


def decode_segment_header(block: bytes) -> SegmentHeader | None:
    """The header in ``block``, or None if its checksum is wrong."""
    if len(block) != SEGMENT_HEADER_BYTES or not block.startswith(_SEGMENT_MAGIC):
        return None
    _, crc, version, number, capacity, salt, owner, oldest = _SEGMENT.unpack_from(block)
    checked = bytearray(block)
    _U32.pack_into(checked, len(_SEGMENT_MAGIC), 0)
    if _checksum(checked) != crc:
        return None
    return SegmentHeader(number, capacity, salt, owner.rstrip(b"\0").decode(), oldest, version)


def looks_like_segment(block: bytes) -> bool:
    """Whether ``block`` is, or once was, the first block of a segment."""
    return block.startswith(_SEGMENT_MAGIC)


# --- records --------------------------------------------------------------------------------------


def encode_record(
    salted: int, kind: Kind, sequence: int, durable: int, body: Sequence[Buffer]
) -> tuple[list[Buffer], int]:
    """The buffers to write for one record, ``body`` itself among them, and their length.

    ``salted`` is :func:`salt_seed` of the log's salt. Raises ``ValueError`` above 4 GiB.
    """
    digest, length = xxh3_64(), 0
    for part in body:
        digest.update(part)
        length += part.nbytes if isinstance(part, memoryview) else len(part)
    if length > MAX_BODY_BYTES:
        raise ValueError(f"a record holds at most {MAX_BODY_BYTES} bytes, got {length}")
    padding = _PADDING[length % 8]
    digest.update(padding)
    checked = _CHECKED.pack(digest.intdigest(), sequence, durable, length, kind, 0)
    header = MAGIC + _U32.pack(_checksum(checked, salted)) + checked
    return [header, *body, padding], RECORD_HEADER_BYTES + length + len(padding)


def salt_seed(salt: bytes) -> int:
    """Where the checksum of every record header of a log starts."""
    return xxh3_64_intdigest(salt)


def _checksum(data: Buffer, seed: int = 0) -> int:
    return xxh3_64_intdigest(data, seed) & 0xFFFFFFFF


def decode_record_header(salted: int, data: bytes, offset: int) -> RecordHeader | None:
    """The header at ``offset``, or None if there is none or its checksum is wrong."""
    end = offset + RECORD_HEADER_BYTES
    if len(data) < end or not data.startswith(MAGIC, offset):
        return None
    _, crc, body_hash, sequence, durable, length, kind, _ = _RECORD.unpack_from(data, offset)
    if _checksum(data[offset + 8 : end], salted) != crc:
        return None
    num_bytes = RECORD_HEADER_BYTES + (length + 7) // 8 * 8
    return RecordHeader(body_hash, length, sequence, durable, kind, num_bytes)


def is_body_sound(header: RecordHeader, data: bytes, offset: int) -> bool:
    """Whether the body of the record at ``offset`` is all there and unchanged."""
    end = offset + header.num_bytes
    body = memoryview(data)[offset + RECORD_HEADER_BYTES : end]
    return len(data) >= end and xxh3_64_intdigest(body) == header.body_hash


def body_of(header: RecordHeader, data: Buffer, offset: int = 0) -> memoryview:
    """The body of the record at ``offset``, without a copy."""
    start = offset + RECORD_HEADER_BYTES
    return memoryview(data)[start : start + header.length]


# --- bodies ---------------------------------------------------------------------------------------

KEY_BYTES = _KEY.size


def encode_key(key: Key) -> bytes:
    """The start of the body of a :attr:`Kind.PUT`."""
    return _KEY.pack(*key)


def decode_key(body: Buffer, offset: int = 0) -> Key:
    """The key at the start of the body of a :attr:`Kind.PUT`."""
    first, second, third = _KEY.unpack_from(body, offset)
    return first, second, third


def encode_drops(groups: Sequence[int]) -> bytes:
    """The start of the body of a turn and of each part of a checkpoint."""
    return struct.pack(f"<I{len(groups)}Q", len(groups), *groups)


def decode_drops(body: Buffer) -> tuple[tuple[int, ...], int]:
    """The dropped groups in such a body, and where the rest starts."""
    (number,) = _U32.unpack_from(body)
    return struct.unpack_from(f"<{number}Q", body, _U32.size), _U32.size + 8 * number


def encode_part(part: Part) -> bytes:
    """Behind the drops in the body of a :attr:`Kind.CHECKPOINT` or :attr:`Kind.PART`."""
    return _PART.pack(*part)


def decode_part(body: Buffer) -> tuple[tuple[int, ...], Part, int]:
    """The dropped groups in such a body, which part it is, and where its contents start."""
    groups, offset = decode_drops(body)
    return groups, Part(*_PART.unpack_from(body, offset)), offset + _PART.size


def encode_number(number: int) -> bytes:
    """The body of a :attr:`Kind.FLOOR` or :attr:`Kind.SEAL`."""
    return _U64.pack(number)


def decode_number(body: Buffer) -> int:
    """The body of a :attr:`Kind.FLOOR` or :attr:`Kind.SEAL`."""
    return int(_U64.unpack_from(body)[0])
