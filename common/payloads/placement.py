"""Which store a group goes to: rendezvous hashing, so that a store that comes or goes moves only
the groups that were or will be its own (Thaler and Ravishankar 1998).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b


def ranked_stores(group_id: int, names: Iterable[str]) -> list[str]:
    """``names`` in the order that ``group_id`` prefers them; the same for every caller."""
    return sorted(names, key=lambda name: (_weight(group_id, name), name))


def _weight(group_id: int, name: str) -> bytes:
    return blake2b(f"{group_id}:{name}".encode(), digest_size=8).digest()
