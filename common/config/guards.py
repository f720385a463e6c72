"""What watches over training: guards before a step, alarms after it, and where numbers go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class GuardsConfig:
    """What keeps a bad step off the weights; ``docs/debugging.md`` says how to choose."""

    spike: Literal["off", "warn", "skip"] = "warn"
    """A step far above the running median: ``warn`` takes it, ``skip`` drops its groups."""
    spike_window: int = 50
    """Steps that the median is taken over; at least 10 of them must be there."""
    max_grad_norm_factor: float = 10.0
    """Gradient norm over its median that counts as a spike; 0 sets no limit."""
    max_loss_factor: float = 0.0
    """|loss| over the median of |loss| that counts as one; 0 sets no limit (it is often near 0)."""
    max_skipped: int = 3
    """Batches refused in a row at one step that stop the run."""
    digest_every: int = 10
    """Steps after which ranks compare digests of what they must have in common; 0: never."""


@dataclass(frozen=True, kw_only=True)
class AlarmsConfig:
    """Values of a step that a person should know of; a limit of 0 turns its alarm off."""

    action: Literal["warn", "stop"] = "warn"
    """``warn`` writes a line and sets a gauge; ``stop`` also ends the learner after the step."""
    max_lag0_kl: float = 0.02
    """k3 KL in nats between policy and sampler at lag 0: what two engines may differ by."""
    max_lag0_gap: float = 5.0
    """Largest |policy - behavior| log-probability in nats of a token at lag 0."""
    max_stale_kl: float = 0.5
    """k3 KL in nats between policy and sampler of tokens of lag 1 and more."""
    max_ratio_deviation: float = 0.1
    """How far the mean importance ratio may be from 1."""
    max_clip_ratio: float = 0.3
    """Share of tokens that the clip takes the gradient from."""
    min_entropy: float = 0.01
    """Mean token entropy in nats."""
    min_entropy_ratio: float = 0.2
    """Mean token entropy over that of the run's first step."""
