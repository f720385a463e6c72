"""Bytes of the log: segment headers and records. Pure.

A segment starts with a header block of 4096 bytes: magic, CRC32C of the block, format, number,
capacity, salt, owner. It is made before anybody knows which record will come first; that one says
it. Records follow, each aligned to 8 bytes:

====== ===== =====================================================================================
offset bytes field
====== ===== =====================================================================================
0      4     magic ``HRJR``
4      4     CRC32C of the salt and of bytes 8 to 40
8      4     CRC32C of the body and its padding
12     4     length of the body
16     8     sequence: one more than the record before, in all segments together
24     8     durable: the last sequence that was known to be on disk when this record was made
32     2     kind
34     6     zero
40     -     body, zeros up to a multiple of 8
====== ===== =====================================================================================

The salt is random and the same in all segments of a log. It keeps bytes inside a payload from being
taken for a record by someone who looks for records behind a damaged one.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import NamedTuple

from google_crc32c import extend

from common.codec import Buffer

FORMAT_VERSION = 2
"""Format 1 was one SQLite file."""

SEGMENT_HEADER_BYTES = 4096
SALT_BYTES = 16
MAX_OWNER_BYTES = 128
MAX_BODY_BYTES = (1 << 32) - 64
RECORD_HEADER_BYTES = 40
MAGIC = b"HRJR"

_SEGMENT_MAGIC = b"HRJOURNL"
_SEGMENT = struct.Struct(f"<8sIIQQ{SALT_BYTES}s{MAX_OWNER_BYTES}s")
_RECORD = struct.Struct("<4sIIIQQHHI")
_CHECKED = struct.Struct("<IIQQHHI")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_KEY = struct.Struct("<QQQ")
_PADDING = tuple(bytes(-size % 8) for size in range(8))

Key = tuple[int, int, int]
"""Of a keyed record: the group that it is dropped with, then two numbers of the caller's own."""


class Kind(enum.IntEnum):
    """What a record says."""

    PUT = 1
    """Key and contents of a keyed record; replaces what the key had."""
    TURN = 2
    """Groups whose keyed records are dropped, then contents that matter up to a checkpoint."""
    CHECKPOINT = 3
    """Dropped groups, then what replaces the contents of all turns before."""
    FLOOR = 4
    """Number of the first segment that is still needed."""
    SEAL = 5
    """Last record of a segment. It takes no sequence of its own: it has that of the next record."""


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
    format: int = FORMAT_VERSION


class RecordHeader(NamedTuple):
    """The first 40 bytes of a record, without magic and checksum."""

    body_crc: int
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
    fields = (header.format, header.number, header.capacity, header.salt, owner)
    block = bytearray(SEGMENT_HEADER_BYTES)
    _SEGMENT.pack_into(block, 0, _SEGMENT_MAGIC, 0, *fields)
    _U32.pack_into(block, len(_SEGMENT_MAGIC), extend(0, bytes(block)))
    return bytes(block)


def decode_segment_header(block: bytes) -> SegmentHeader | None:
    """The header in ``block``, or None if its checksum is wrong."""
    if len(block) != SEGMENT_HEADER_BYTES or not block.startswith(_SEGMENT_MAGIC):
        return None
    _, crc, version, number, capacity, salt, owner = _SEGMENT.unpack_from(block)
    checked = bytearray(block)
    _U32.pack_into(checked, len(_SEGMENT_MAGIC), 0)
    if extend(0, bytes(checked)) != crc:
        return None
    return SegmentHeader(number, capacity, salt, owner.rstrip(b"\0").decode(), version)


def looks_like_segment(block: bytes) -> bool:
    """Whether ``block`` is, or once was, the first block of a segment."""
    return block.startswith(_SEGMENT_MAGIC)


# --- records --------------------------------------------------------------------------------------


def encode_record(
    salt_crc: int, kind: Kind, sequence: int, durable: int, body: Sequence[Buffer]
) -> tuple[list[Buffer], int]:
    """The buffers to write for one record, ``body`` itself among them, and their length.

    ``salt_crc`` is :func:`salt_crc` of the log's salt. Raises ``ValueError`` above 4 GiB.
    """
    crc = length = 0
    for part in body:
        data = part if isinstance(part, bytes) else bytes(part)
        crc = extend(crc, data)
        length += len(data)
    if length > MAX_BODY_BYTES:
        raise ValueError(f"a record holds at most {MAX_BODY_BYTES} bytes, got {length}")
    padding = _PADDING[length % 8]
    crc = extend(crc, padding)
    checked = _CHECKED.pack(crc, length, sequence, durable, kind, 0, 0)
    header = MAGIC + _U32.pack(extend(salt_crc, checked)) + checked
    return [header, *body, padding], RECORD_HEADER_BYTES + length + len(padding)


def salt_crc(salt: bytes) -> int:
    """Where the checksum of every record header of a log starts."""
    return int(extend(0, salt))


def decode_record_header(salted: int, data: bytes, offset: int) -> RecordHeader | None:
    """The header at ``offset``, or None if there is none or its checksum is wrong."""
    end = offset + RECORD_HEADER_BYTES
    if len(data) < end or not data.startswith(MAGIC, offset):
        return None
    _, crc, body_crc, length, sequence, durable, kind, _, _ = _RECORD.unpack_from(data, offset)
    if extend(salted, data[offset + 8 : end]) != crc:
        return None
    num_bytes = RECORD_HEADER_BYTES + (length + 7) // 8 * 8
    return RecordHeader(body_crc, length, sequence, durable, kind, num_bytes)


def is_body_sound(header: RecordHeader, data: bytes, offset: int) -> bool:
    """Whether the body of the record at ``offset`` is all there and unchanged."""
    end = offset + header.num_bytes
    body = data[offset + RECORD_HEADER_BYTES : end]
    return len(data) >= end and bool(extend(0, body) == header.body_crc)


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
    """The start of the body of a :attr:`Kind.TURN` or :attr:`Kind.CHECKPOINT`."""
    return struct.pack(f"<I{len(groups)}Q", len(groups), *groups)


def decode_drops(body: Buffer) -> tuple[tuple[int, ...], int]:
    """The dropped groups of a turn or checkpoint, and where its contents start."""
    (number,) = _U32.unpack_from(body)
    return struct.unpack_from(f"<{number}Q", body, _U32.size), _U32.size + 8 * number


def encode_number(number: int) -> bytes:
    """The body of a :attr:`Kind.FLOOR` or :attr:`Kind.SEAL`."""
    return _U64.pack(number)


def decode_number(body: Buffer) -> int:
    """The body of a :attr:`Kind.FLOOR` or :attr:`Kind.SEAL`."""
    return int(_U64.unpack_from(body)[0])
