"""How long a step takes, and how old its tokens are, from the times of its parts.

The law ``u = min(1, (eta + 1) / (w + rho kappa))`` of a learner in balance with its actors, written
for any balance: at most eta + 1 batches are outstanding, and one passes through in
``w train + publish + kappa latency`` seconds. It was fitted on a discrete-event simulation;
``headrace bench scheduler`` prints it beside the real scheduler's utilisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

STREAMING = 1
"""w of a learner that computes groups as they come."""
BATCH_WAITING = 2
"""w of a learner that begins when the whole batch is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Seconds of the parts of a step, each as if it were alone. ``latency_s`` is of one answer."""

    generate_s: float
    """For the answers of a batch, by all engines with all their sequences running."""
    train_s: float
    latency_s: float
    """From the lease of a prompt to the end of a mean answer."""
    tail_ratio: float
    """kappa: the longest answer of a group over the mean one."""
    publish_s: float
    """From the end of a step until all actors serve its weights."""
    verify_s: float = 0.0

    @property
    def group_s(self) -> float:
        """From the lease of a group to the last of its verdicts."""
        return self.tail_ratio * self.latency_s + self.verify_s

    def bound_s(self, max_policy_lag: int, waits: int) -> float:
        """Seconds a step by the bound: a batch's way through, over the batches on the way."""
        way_s = waits * self.train_s + self.publish_s + self.group_s
        return way_s / (max_policy_lag + 1)


def utilisation(max_policy_lag: int, rho: float, kappa: float, waits: int) -> float:
    """The law for stages in balance: ``rho`` is latency over step time."""
    return min(1.0, (max_policy_lag + 1) / (waits + rho * kappa))


def needed_lag(times: StepTimes, step_s: float, waits: int) -> int:
    """The least ``max_policy_lag`` with which the bound costs nothing at ``step_s`` a step."""
    return max(0, math.ceil(times.bound_s(0, waits) / step_s - 1e-9) - 1)


def mean_lag(times: StepTimes, step_s: float, max_policy_lag: int, waits: int) -> float:
    """Mean policy lag in steps, by Little's law, at most the bound.

    Groups from lease to commit, over groups a step, are the stay W in steps; a lease in the middle
    of its step makes the lag W - 1/2. Where the bound binds, the lag is the bound.
    """
    if times.bound_s(max_policy_lag, waits) >= step_s * (1 - 1e-9):
        return float(max_policy_lag)
    stay = (times.group_s + times.publish_s) / step_s + waits
    return min(float(max_policy_lag), max(0.0, stay - 0.5))
