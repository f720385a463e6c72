"""What a rollout costs the broker, by the size of the fleet (B7).

The batch grows with the fleet, so the work in flight does too: the ledger of ten actors fits into a
cache of the processor, that of ten thousand does not. Ten actors with the large batch are measured
beside them; they have nearly as much in flight, but hardly anybody to tell of new weights.
"""

from __future__ import annotations

from statistics import fmean

from broker import garbage
from broker.simulation.fleet import GROUP_SIZE, GROUPS_PER_ACTOR, TURN_MESSAGES, FleetRun

FLEETS = (10, 10_000)
NUM_WINDOWS = 8
"""The fleets take turns so often while each goes through a step."""
_LEAST_ROLLOUTS = 2_000


def fleet_study(quick: bool) -> dict[str, object]:
    """CPU seconds a rollout for each fleet, over a step; ``quick`` has smaller fleets.

    The collector of garbage rests, as in the broker's own process under load. Seconds depend on
    caches; the function calls a rollout, which do not, are told beside them.
    """
    few, many = (10, 500) if quick else FLEETS
    runs = {
        str(few): FleetRun(few, few * GROUPS_PER_ACTOR),
        str(many): FleetRun(many, many * GROUPS_PER_ACTOR),
        f"{few}, batch of {many}": FleetRun(few, many * GROUPS_PER_ACTOR),
    }
    garbage.begin()
    for run in runs.values():
        run.start()
        run.advance(run.groups_per_step * GROUP_SIZE)
    windows = _windows(runs)
    seconds = {name: fmean(values) for name, values in windows.items()}
    calls = {name: _calls_per_rollout(runs[name]) for name in (str(few), str(many))}
    return {
        "ratio": seconds[str(many)] / seconds[str(few)],
        "over_same_batch": seconds[str(many)] / seconds[f"{few}, batch of {many}"],
        "cpu_s_per_rollout": {
            name: {"min_s": min(values), "mean_s": seconds[name], "max_s": max(values)}
            for name, values in windows.items()
        },
        "calls_per_rollout": calls,
        "calls_ratio": calls[str(many)] / calls[str(few)],
        "messages_per_rollout": {
            name: run.num_messages / run.num_sampled for name, run in runs.items()
        },
        "messages_a_turn": TURN_MESSAGES,
        "group_size": GROUP_SIZE,
        "groups_per_actor": GROUPS_PER_ACTOR,
    }


def _windows(runs: dict[str, FleetRun]) -> dict[str, list[float]]:
    """CPU seconds a rollout of each run in each window; together the windows are a step."""
    windows: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(NUM_WINDOWS):
        for name, run in runs.items():
            windows[name].append(run.advance(_window(run)))
    return windows


def _window(run: FleetRun) -> int:
    """Rollouts of a window: its part of a step, or enough to measure."""
    return max(_LEAST_ROLLOUTS, run.groups_per_step * GROUP_SIZE // NUM_WINDOWS)


def _calls_per_rollout(run: FleetRun) -> float:
    """Function calls of the broker for a rollout, over a step at least."""
    run.counts_calls = True
    num_calls, num_sampled = run.num_calls, run.num_sampled
    run.advance(NUM_WINDOWS * _window(run))
    run.counts_calls = False
    return (run.num_calls - num_calls) / (run.num_sampled - num_sampled)
