"""What a rollout costs the broker, by the size of the fleet (B7)."""

from __future__ import annotations

import gc
from statistics import median

from broker.simulation.fleet import GROUP_SIZE, GROUPS_PER_ACTOR, TURN_MESSAGES, FleetRun

FLEETS = (10, 100, 1_000, 10_000)


def fleet_study(quick: bool) -> dict[str, object]:
    """CPU seconds a rollout for each fleet, the fleets taking turns; ``quick`` has no big one.

    The collector of garbage is set as in the broker's own process. Seconds grow with the memory
    that the groups take, for caches are small; the function calls a rollout are told beside them.
    """
    sizes = FLEETS[:3] if quick else FLEETS
    repeats, rollouts = (3, 2_000) if quick else (3, 20_000)
    runs = {size: FleetRun(size) for size in sizes}
    gc.freeze()
    gc.set_threshold(50_000, 2, 1_000_000)
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for run in runs.values():
        run.start()
        run.advance(run.num_actors * GROUP_SIZE * GROUPS_PER_ACTOR)
    for _ in range(repeats):
        for size, run in runs.items():
            seconds[size].append(run.advance(max(rollouts, size * GROUP_SIZE * GROUPS_PER_ACTOR)))
    calls = {size: _calls_per_rollout(run) for size, run in runs.items()}
    medians = {size: median(values) for size, values in seconds.items()}
    return {
        "ratio": medians[sizes[-1]] / medians[sizes[0]],
        "over_cheapest_fleet": medians[sizes[-1]] / min(medians.values()),
        "cpu_s_per_rollout": {
            str(size): {"min_s": min(values), "median_s": medians[size], "max_s": max(values)}
            for size, values in seconds.items()
        },
        "calls_per_rollout": {str(size): number for size, number in calls.items()},
        "calls_ratio": calls[sizes[-1]] / calls[sizes[0]],
        "messages_per_rollout": {
            str(size): run.num_messages / max(run.num_trained, 1) for size, run in runs.items()
        },
        "messages_a_turn": TURN_MESSAGES,
        "group_size": GROUP_SIZE,
        "groups_per_actor": GROUPS_PER_ACTOR,
    }


def _calls_per_rollout(run: FleetRun) -> float:
    """Function calls of the broker for a rollout, over a step at least."""
    run.counts_calls = True
    num_calls, num_trained = run.num_calls, run.num_trained
    run.advance(max(2_000, run.num_actors * GROUP_SIZE * GROUPS_PER_ACTOR))
    run.counts_calls = False
    return (run.num_calls - num_calls) / (run.num_trained - num_trained)
