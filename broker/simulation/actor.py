"""A virtual actor: slots that sample for as long as a completion is, and weights that change."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from common.messages import Lease, PromptLease
from common.types import FinishReason, RolloutHeader, RolloutId, VersionSpan, WeightVersion

TOKENS_PER_UNIT = 10_000
"""Tokens of a completion of mean length: fine enough for spans to tell when weights changed."""


@dataclass(slots=True)
class Job:
    """One completion, waiting in the engine or being sampled."""

    rollout_id: RolloutId
    length: float
    began_s: float = 0.0
    first_version: int = 0
    """Which of the actor's versions sampled the first token."""


@dataclass(slots=True)
class VirtualActor:
    """One engine with ``slots`` sequences; what does not fit waits inside it."""

    name: str
    slots: int
    latency_s: float
    serving: WeightVersion | None = None
    life: int = 0
    """Deaths so far: what was planned in an earlier life does not happen."""
    num_running: int = 0
    backlog: deque[Job] = field(default_factory=deque)
    _versions: list[tuple[float, WeightVersion]] = field(default_factory=list)
    _held: dict[int, tuple[int, set[int]]] = field(default_factory=dict)

    @property
    def num_free(self) -> int:
        """Slots without work."""
        return self.slots - self.num_running - len(self.backlog)

    def load(self, version: WeightVersion, now_s: float) -> None:
        """Serve ``version`` from now on; what is being sampled goes on under it."""
        self.serving = version
        self._versions.append((now_s, version))

    def take(self, prompt: PromptLease, lengths: tuple[float, ...]) -> None:
        """Queue the completions of a lease."""
        lease = prompt.lease
        self._held[lease.attempt] = (lease.group_id, set(lease.indices))
        for index in lease.indices:
            rollout_id = RolloutId(group_id=lease.group_id, index=index, attempt=lease.attempt)
            self.backlog.append(Job(rollout_id, lengths[index]))

    def begin(self, now_s: float) -> Job | None:
        """Start the next completion if a slot is free."""
        if not self.backlog or self.num_running >= self.slots:
            return None
        job = self.backlog.popleft()
        job.began_s, job.first_version = now_s, len(self._versions) - 1
        self.num_running += 1
        return job

    def finish(self, job: Job) -> RolloutHeader:
        """The header of a completion that ends now."""
        self.num_running -= 1
        rollout_id = job.rollout_id
        _, indices = self._held[rollout_id.attempt]
        indices.discard(rollout_id.index)
        if not indices:
            del self._held[rollout_id.attempt]
        return RolloutHeader(
            rollout_id=rollout_id,
            num_prompt_tokens=1,
            num_completion_tokens=max(1, round(job.length * TOKENS_PER_UNIT)),
            finish_reason=FinishReason.STOP,
            temperature=1.0,
            version_spans=self._spans(job),
            actor=self.name,
        )

    def held_leases(self) -> tuple[Lease, ...]:
        """What a heartbeat names."""
        return tuple(
            Lease(group_id=group_id, indices=tuple(sorted(indices)), attempt=attempt)
            for attempt, (group_id, indices) in self._held.items()
        )

    def die(self) -> None:
        """Lose everything."""
        self.life += 1
        self.num_running = 0
        self.backlog.clear()
        self._held.clear()
        self._versions.clear()
        self.serving = None

    def _spans(self, job: Job) -> tuple[VersionSpan, ...]:
        spans = [VersionSpan(start=0, version=self._versions[job.first_version][1])]
        num_tokens = round(job.length * TOKENS_PER_UNIT)
        for changed_s, version in self._versions[job.first_version + 1 :]:
            start = int((changed_s - job.began_s) / self.latency_s * TOKENS_PER_UNIT)
            if spans[-1].start < start < num_tokens:
                spans.append(VersionSpan(start=start, version=version))
        return tuple(spans)
