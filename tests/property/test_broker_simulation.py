"""Whole runs of the pure broker under seeded chaos; see ``broker_simulation`` for the oracle."""

from __future__ import annotations

import pytest

from broker.ledger_state import LedgerRules
from common.types import EvictReason
from tests.property.broker_simulation import Faults, World

MAX_TICKS = 60_000


def _rules(max_policy_lag: int) -> LedgerRules:
    return LedgerRules(group_size=3, groups_per_step=4, num_steps=12, max_policy_lag=max_policy_lag)


def _num_stepped(world: World) -> int:
    """Distinct groups in the steps of the surviving timeline."""
    stepped = [group for ids in world.learner.records.values() for group in ids]
    assert len(stepped) == len(set(stepped)), "a group is in two steps"
    return len(stepped)


@pytest.mark.parametrize("max_policy_lag", [0, 1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_a_run_without_faults_trains_exactly_what_it_admits(seed: int, max_policy_lag: int) -> None:
    world = World(seed, _rules(max_policy_lag), Faults())
    assert world.run(MAX_TICKS) < MAX_TICKS
    counts = world.ledger.counts
    assert counts.trained == counts.admitted == 12 * 4
    assert world.payloads.kept == {}


@pytest.mark.parametrize("max_policy_lag", [0, 1, 2, 5])
@pytest.mark.parametrize("seed", range(12))
def test_every_run_ends_whatever_dies_and_nothing_goes_stale(
    seed: int, max_policy_lag: int
) -> None:
    world = World(seed, _rules(max_policy_lag), Faults(rate=0.03))
    assert world.run(MAX_TICKS) < MAX_TICKS, "deadlock"
    assert _num_stepped(world) == 12 * 4
    assert EvictReason.STALE not in world.ledger.state.num_evicted


@pytest.mark.parametrize("seed", range(24))
def test_runs_with_forks_keep_the_bound_on_lag_and_end(seed: int) -> None:
    world = World(seed, _rules(2), Faults(rate=0.03, forks=True))
    assert world.run(MAX_TICKS) < MAX_TICKS, "deadlock"
    assert _num_stepped(world) == 12 * 4


def test_a_run_recovers_when_a_storm_of_faults_ends() -> None:
    world = World(99, _rules(2), Faults(rate=0.5, forks=True))
    for _ in range(3_000):
        world.tick()
    world.faults = Faults()
    assert world.run(MAX_TICKS) < MAX_TICKS, "backlog was never served"
