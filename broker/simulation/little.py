"""Mean policy lag by Little's law, from populations that the broker counts.

Population: groups from their lease to the commit of the step that trains them, ``N``, as the ledger
counts them (open + handed over). ``P`` of them leave at each commit. Lag of a rollout: commits
between the publication of the weights that sampled its first token and the commit that trains it,
that one left out; all rollouts of a group begin when it is leased, so this is the group's lag.

*Time average.* Little: a group stays for ``W = N P^-1 T`` with ``T`` the mean time of a step. With
steps of equal length, a lease a share ``phi`` into its step and a stay that ends on a commit, the
commits passed are ``W / T - 1 + phi``, hence::

    mean lag = N / P - 1 + phi

``phi`` is 0 where the bound binds (a commit opens admission and all is leased at once: the lag is
``N / P - 1``), and 1/2 where slots bind. Unequal steps make it an approximation.

*At commits.* Each group adds 1 to the lags of its rollouts at each commit that it outlives. So the
sum of the lags of all that is trained is the sum over commits of the groups that are outstanding
right after it: exact over a whole run without failures, if weights are published at once. A
difference means that the ledger's population is not what is really there: a leak.
"""

from __future__ import annotations

from bisect import bisect_right
from statistics import fmean

from broker.simulation.run import Outcome


def predicted_lag(outcome: Outcome, groups_per_step: int) -> float:
    """By the time average over the steady part of a run."""
    first, last = outcome.steady_window()
    seconds = outcome.steps[last].at_s - outcome.steps[first].at_s
    population = (outcome.group_seconds[last] - outcome.group_seconds[first]) / seconds
    return population / groups_per_step - 1 + _mean_phase(outcome, first, last)


def measured_lag(outcome: Outcome) -> float:
    """Of the rollouts that were trained in the steady part of a run."""
    first, last = outcome.steady_window()
    return fmean(step.mean_lag for step in outcome.steps[first + 1 : last + 1])


def leaked_lag(outcome: Outcome, groups_per_step: int) -> float:
    """Lag by the ledger's population at commits minus the lag that was measured: 0 if no leak."""
    by_population = fmean(step.survivors for step in outcome.steps) / groups_per_step
    return by_population - fmean(step.mean_lag for step in outcome.steps)


def _mean_phase(outcome: Outcome, first: int, last: int) -> float:
    """How far into its step a lease is granted, on average, as a share of the step."""
    commits = [step.at_s for step in outcome.steps]
    phases = []
    for at_s in outcome.leased_at_s:
        step = bisect_right(commits, at_s)
        if first < step <= last:
            began_s = commits[step - 1]
            phases.append((at_s - began_s) / (commits[step] - began_s))
    return fmean(phases) if phases else 0.0
