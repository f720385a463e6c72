"""What is simulated: fleet, lengths, learner, bound, faults. All times are virtual seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from broker.simulation.lengths import Lengths, Lognormal

GROUP_SIZE = 16
GROUPS_PER_STEP = 32
"""A batch of 512 rollouts, as in the simulation that the law was fitted on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong, and how often; nothing by default."""

    actor_deaths: float = 0.0
    """Deaths of each actor a second."""
    learner_deaths: float = 0.0
    """Deaths of the learner a second."""
    fork_share: float = 0.5
    """Share of learner restarts that cannot reproduce what was published."""
    lost_verdicts: float = 0.0
    """Share of verifications that end in an infrastructure failure."""
    late_publish_s: float = 0.0
    """Publishes take up to so much longer, uniformly."""
    restart_s: float = 0.5
    """From a death to the next start."""
    lease_s: float = 3.0
    """A lease that no heartbeat names for so long is given to somebody else."""
    heartbeat_s: float = 0.5
    """Actors are heard of this often."""

    @property
    def any_death(self) -> bool:
        """Whether leases can be lost with their owner."""
        return self.actor_deaths > 0 or self.learner_deaths > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One run under simulation.

    The learner needs one second for a batch of mean lengths, and ``latency_s`` is the mean time of
    a completion, so ``latency_s`` is rho of the law. :meth:`balanced` gives the fleet whose
    sampling keeps up with the learner exactly.
    """

    num_actors: int
    slots_per_actor: int
    """Completions that one actor samples at once."""
    latency_s: float = 1.0
    group_size: int = GROUP_SIZE
    groups_per_step: int = GROUPS_PER_STEP
    max_policy_lag: int = 2
    num_steps: int = 40
    lengths: Lengths = field(default_factory=Lognormal)
    verify_s: float = 0.002
    num_verifiers: int = 1 << 20
    """Verification never gates the learner unless it is asked to."""
    publish_s: float = 0.005
    """From the commit of a step until all actors serve its weights."""
    takes: Literal["free slots", "whole groups"] = "free slots"
    """When an actor asks for a group: a slot is free (its engine queues the rest), or all fit."""
    learner: Literal["streaming", "batch-waiting"] = "streaming"
    """Whether gradients are accumulated as groups come, or only once a whole batch is there."""
    gate: Literal["deadline", "count"] = "deadline"
    """``count`` replaces the bound by ``started <= (eta + 1 + version) * P``, which overshoots."""
    checkpoint_every: int = 4
    seed: int = 0
    checked: bool = False
    """Check conservation after every event and keep a hash of all of them."""
    faults: Faults = field(default_factory=Faults)

    @classmethod
    def balanced(cls, *, rho: float, slots_per_actor: int = 64, **changes: object) -> Setting:
        """The fleet with ``rho * B`` slots, B rollouts a step: sampling as fast as training."""
        plain = cls(num_actors=1, slots_per_actor=1, latency_s=rho, **changes)  # type: ignore[arg-type]
        slots = round(rho * plain.group_size * plain.groups_per_step)
        per_actor = min(slots_per_actor, slots)
        return cls(
            num_actors=math.ceil(slots / per_actor),
            slots_per_actor=per_actor,
            latency_s=rho,
            **changes,  # type: ignore[arg-type]
        )

    @property
    def num_slots(self) -> int:
        """Completions that the fleet samples at once."""
        return self.num_actors * self.slots_per_actor

    def train_s(self, lengths: tuple[float, ...]) -> float:
        """Seconds of the learner for one group: in proportion to its tokens."""
        return sum(lengths) / (self.group_size * self.groups_per_step)


def law(eta: int, rho: float, kappa: float, w: int) -> float:
    """Utilisation ``min(1, (eta+1)/(w + rho*kappa))``: ``w`` 1 for a streaming learner, else 2."""
    return min(1.0, (eta + 1) / (w + rho * kappa))
