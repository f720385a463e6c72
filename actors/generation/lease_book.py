"""Which sampling request belongs to which lease, and how much room is left: pure bookkeeping.

Every index of a lease is in one of two states here: sampling (a request is inside the engine) or
unacknowledged (its rollout is finished and the broker has not yet confirmed it). It leaves when it
is confirmed, given back or revoked. Heartbeats name exactly the indices that are still here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from common.messages import Lease, PromptLease
from common.types import RolloutId


@dataclass(frozen=True, slots=True)
class SamplingJob:
    """One request inside the engine."""

    request_id: str
    rollout_id: RolloutId
    prompt_token_ids: tuple[int, ...]
    began_s: float


def request_id_of(rollout_id: RolloutId) -> str:
    """The name of a rollout inside the engine."""
    return f"{rollout_id.group_id}/{rollout_id.index}/{rollout_id.attempt}"


def rollout_ids_of(lease: Lease) -> list[RolloutId]:
    """One rollout id for each index of ``lease``."""
    return [
        RolloutId(group_id=lease.group_id, index=index, attempt=lease.attempt)
        for index in lease.indices
    ]


class LeaseBook:
    """Everything that this actor holds.

    ``max_sequences`` is how many completions the engine samples together; room is counted in
    groups of ``group_size``. An idle engine has room for one group of any size.
    """

    def __init__(self, *, max_sequences: int, group_size: int) -> None:
        self._max_sequences = max_sequences
        self._group_size = group_size
        self._sampling: dict[str, SamplingJob] = {}
        self._unacknowledged: set[RolloutId] = set()

    @property
    def num_sampling(self) -> int:
        """Requests inside the engine."""
        return len(self._sampling)

    @property
    def num_unacknowledged(self) -> int:
        """Finished rollouts that the broker has not confirmed."""
        return len(self._unacknowledged)

    @property
    def room_groups(self) -> int:
        """Groups to ask for now: those that fit, or one as soon as one of its answers does.

        Where slots are few, waiting until a whole group fits leaves them idle; the engine queues
        the answers of that group that find no slot yet.
        """
        free = max(0, self._max_sequences - len(self._sampling))
        return max(free // self._group_size, int(free > 0))

    def take(
        self, prompt_lease: PromptLease, prompt_token_ids: Iterable[int], now_s: float
    ) -> list[SamplingJob]:
        """Book a lease; returns one job for each of its indices that is not here already."""
        tokens = tuple(prompt_token_ids)
        jobs = [
            SamplingJob(request_id_of(rollout_id), rollout_id, tokens, now_s)
            for rollout_id in rollout_ids_of(prompt_lease.lease)
            if rollout_id not in self._unacknowledged
            and request_id_of(rollout_id) not in self._sampling
        ]
        self._sampling.update((job.request_id, job) for job in jobs)
        return jobs

    def finish(self, request_id: str) -> SamplingJob | None:
        """The job of a finished completion, from now on unacknowledged; None if it was dropped."""
        job = self._sampling.pop(request_id, None)
        if job is not None:
            self._unacknowledged.add(job.rollout_id)
        return job

    def acknowledge(self, rollout_id: RolloutId) -> None:
        """The broker has it, or will never take it."""
        self._unacknowledged.discard(rollout_id)

    def drop(self, lease: Lease) -> list[str]:
        """Forget the indices of ``lease``; returns the requests to abort."""
        request_ids = []
        for rollout_id in rollout_ids_of(lease):
            self._unacknowledged.discard(rollout_id)
            if self._sampling.pop(request_id_of(rollout_id), None) is not None:
                request_ids.append(request_id_of(rollout_id))
        return request_ids

    def held_leases(self) -> tuple[Lease, ...]:
        """All that is here, for a heartbeat: sampling and unacknowledged."""
        return _leases([*self._sampling_ids(), *self._unacknowledged])

    def unfinished_leases(self) -> tuple[Lease, ...]:
        """What is still being sampled, to give back."""
        return _leases(self._sampling_ids())

    def _sampling_ids(self) -> list[RolloutId]:
        return [job.rollout_id for job in self._sampling.values()]


def _leases(rollout_ids: Iterable[RolloutId]) -> tuple[Lease, ...]:
    """Group rollout ids by (group, attempt), indices ascending."""
    indices: dict[tuple[int, int], list[int]] = {}
    for rollout_id in sorted(rollout_ids):
        key = (rollout_id.group_id, rollout_id.attempt)
        indices.setdefault(key, []).append(rollout_id.index)
    return tuple(
        Lease(group_id=group_id, indices=tuple(members), attempt=attempt)
        for (group_id, attempt), members in indices.items()
    )
