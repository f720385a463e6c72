"""What tells a resent rollout from another one under the same id."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import xxhash

from common.codec import Buffer, pack
from common.types import RolloutHeader


def content_hash(header: RolloutHeader, frames: Sequence[Buffer]) -> str:
    """Hash of a rollout, its arrays included, wherever those are kept.

    The same rollout may be sent to another store when the first does not answer, so the name of the
    store is no part of it.
    """
    digest = xxhash.xxh3_128(pack(msgspec.structs.replace(header, store="")))
    for frame in frames:
        digest.update(frame)
    return digest.hexdigest()


def header_hash(header: RolloutHeader) -> str:
    """Hash of a header wherever its arrays are kept: 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(pack(msgspec.structs.replace(header, store="")))
