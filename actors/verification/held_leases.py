"""The leases of one verifier: what it has taken from the broker and not answered yet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from common.messages import Lease, RolloutLease
from common.metrics import Metrics
from common.types import RolloutId


class HeldLeases:
    """Rollout -> the attempt for which it is held; the backlog of the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._held: dict[RolloutId, int] = {}
        self._released = asyncio.Event()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, lease: RolloutLease) -> bool:
        return self._held.get(lease.rollout.rollout_id) == lease.verify_attempt

    def add(self, leases: Sequence[RolloutLease]) -> None:
        """Hold these; a later attempt takes the place of an earlier one."""
        for lease in leases:
            self._held[lease.rollout.rollout_id] = lease.verify_attempt
        self._count()

    def release(self, rollout_id: RolloutId) -> None:
        """Hold it no more, however it ended."""
        self._held.pop(rollout_id, None)
        self._count()
        self._released.set()

    def drop(self, revoked: Sequence[Lease]) -> None:
        """Release what the broker has given to others."""
        gone = {
            (lease.group_id, index, lease.attempt) for lease in revoked for index in lease.indices
        }
        for rollout_id, attempt in list(self._held.items()):
            if (rollout_id.group_id, rollout_id.index, attempt) in gone:
                self.release(rollout_id)

    def leases(self) -> tuple[Lease, ...]:
        """All of them, one rollout each."""
        return tuple(_lease(rollout_id, attempt) for rollout_id, attempt in self._held.items())

    def clear(self) -> None:
        """Forget all; the metrics keep what the process last said."""
        self._held.clear()

    async def wait_for_release(self) -> None:
        """Until the next one is released."""
        self._released.clear()
        await self._released.wait()

    def _count(self) -> None:
        self._metrics.set("headrace_verify_backlog", len(self._held))


def lease_of(lease: RolloutLease) -> Lease:
    """What names ``lease`` to the broker."""
    return _lease(lease.rollout.rollout_id, lease.verify_attempt)


def _lease(rollout_id: RolloutId, verify_attempt: int) -> Lease:
    return Lease(group_id=rollout_id.group_id, indices=(rollout_id.index,), attempt=verify_attempt)
