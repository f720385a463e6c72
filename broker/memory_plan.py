"""How the broker divides ``broker.max_memory_bytes``. Pure.

Everything whose size others decide has a share of its own: arrays that arrive (credit), arrays
that leave (replies that libzmq has not yet given to the kernel), arrays kept for their next reader.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.codec import MAX_FRAME_BYTES

BASE_BYTES = 112 << 20
"""The interpreter, its libraries and a ledger of ordinary size."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes for each use; what is left of the cap is slack for the allocator."""

    arriving_bytes: int
    leaving_bytes: int
    cache_bytes: int

    @classmethod
    def under(cls, max_memory_bytes: int) -> MemoryPlan:
        """Shares of a cap, which ``common.config_loader`` keeps above :data:`BASE_BYTES`."""
        rest = max_memory_bytes - BASE_BYTES
        return cls(arriving_bytes=rest // 3, leaving_bytes=rest // 4, cache_bytes=rest // 8)

    @property
    def largest_frame_bytes(self) -> int:
        """A larger frame never gets credit, so none needs to be taken in."""
        return min(MAX_FRAME_BYTES, self.arriving_bytes)
