from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from broker.ledger_state import LedgerRules
from broker.simulation.core import Core, ImbalanceError
from broker.simulation.fleet import GROUP_SIZE, FleetRun
from broker.simulation.lag_book import Lineage
from broker.simulation.lengths import Lengths, Lognormal, Pareto, Workload, tail_ratio
from broker.simulation.little import leaked_lag, measured_lag, predicted_lag
from broker.simulation.run import Simulation
from broker.simulation.schedule_model import Plan, Problem, ScheduleModel
from broker.simulation.schedule_search import best_realisable
from broker.simulation.setting import GROUP_SIZE as SIMULATED_GROUP_SIZE
from broker.simulation.setting import GROUPS_PER_STEP, Setting, law
from broker.simulation.staleness_study import HEAVY, faulty_setting
from common.types import WeightVersion
from tests.builders import version

ONE_POOL = 1 << 20


def test_the_same_seed_gives_the_same_run_event_by_event_and_another_seed_another() -> None:
    first, again, other = (Simulation(faulty_setting(seed)).run() for seed in (7, 7, 8))

    assert first.trace_hash == again.trace_hash != ""
    assert first.steps == again.steps
    assert other.trace_hash != first.trace_hash


def test_no_run_breaks_the_bound_or_loses_a_group_whatever_fails() -> None:
    totals: Counter[str] = Counter()
    for seed in range(24):
        setting = faulty_setting(seed)
        outcome = Simulation(setting).run()  # checks conservation after every event
        counts = outcome.counts
        assert outcome.lags.largest <= setting.max_policy_lag, seed
        assert counts.imbalance == 0
        assert outcome.num_forks or counts.evicted == 0, seed  # nothing leaves as stale
        assert counts.trained == setting.num_steps * setting.groups_per_step
        totals["at the bound"] += outcome.lags.largest == setting.max_policy_lag
        totals["forks"] += outcome.num_forks
        totals["deaths"] += outcome.num_deaths
        totals["dead letters"] += counts.dead_lettered
        totals["without a fork"] += not outcome.num_forks

    assert min(totals.values()) >= 3, totals


def test_count_gating_overshoots_so_the_books_on_lag_can_see_a_violation() -> None:
    setting = Setting.balanced(rho=1.0, max_policy_lag=1, num_steps=12, lengths=HEAVY, gate="count")

    assert Simulation(setting).run().lags.largest > 1


def test_the_checked_ledger_notices_a_group_that_is_lost() -> None:
    core = Core(LedgerRules(group_size=1, groups_per_step=1), lease_s=1.0, checked=True)
    core.announce(version(0), 0.0)
    core.ledger.state.num_trained = 1

    with pytest.raises(ImbalanceError):
        core.lease_prompt("actor", version(0), 0.0)


@pytest.mark.parametrize(
    ("rho", "eta", "batch_waiting", "streaming"),
    [(1.0, 2, 0.60, 0.77), (0.5, 1, 0.57, 0.82)],
)
def test_count_gating_gives_the_utilisation_that_the_law_was_fitted_on(
    rho: float, eta: int, batch_waiting: float, streaming: float
) -> None:
    """The published simulation: B = 512, G = 16, lognormal 0.8 capped at four times the mean."""
    setting = _published(rho, eta)

    assert Simulation(setting).run().steady_utilisation() == pytest.approx(streaming, abs=0.04)
    waiting = Simulation(replace(setting, learner="batch-waiting")).run()
    assert waiting.steady_utilisation() == pytest.approx(batch_waiting, abs=0.03)


@pytest.mark.parametrize(
    ("rho", "utilisation"), [(0.25, 0.37), (0.5, 0.28), (1.0, 0.20), (2.0, 0.11)]
)
def test_without_lag_a_batch_waiting_learner_is_as_idle_as_published(
    rho: float, utilisation: float
) -> None:
    setting = replace(_published(rho, 0), learner="batch-waiting", num_steps=8)

    assert Simulation(setting).run().steady_utilisation() == pytest.approx(utilisation, abs=0.02)


def _published(rho: float, eta: int) -> Setting:
    return Setting.balanced(
        rho=rho, slots_per_actor=ONE_POOL, max_policy_lag=eta, num_steps=24, gate="count"
    )


@pytest.mark.parametrize(("rho", "eta"), [(0.25, 0), (0.5, 1), (2.0, 4)])
def test_the_model_of_schedules_and_the_real_core_agree_to_the_last_bit(
    rho: float, eta: int
) -> None:
    setting = Setting.balanced(
        rho=rho, slots_per_actor=ONE_POOL, max_policy_lag=eta, num_steps=10, seed=3
    )

    assert ScheduleModel(Problem.of(setting), Plan()).end_s() == Simulation(setting).run().end_s


@pytest.mark.parametrize(("rho", "eta"), [(0.25, 0), (0.5, 2), (2.0, 4)])
def test_no_realisable_schedule_that_a_search_finds_is_much_faster(rho: float, eta: int) -> None:
    setting = Setting.balanced(rho=rho, max_policy_lag=eta, num_steps=12)

    best = best_realisable(Problem.of(setting), num_random=6)

    assert best.end_s >= 0.97 * Simulation(setting).run().end_s


def test_a_learner_that_waits_for_whole_batches_is_slower_under_the_same_bound() -> None:
    setting = Setting.balanced(rho=1.0, max_policy_lag=2, num_steps=16)

    streaming = Simulation(setting).run()
    waiting = Simulation(replace(setting, learner="batch-waiting")).run()

    assert waiting.end_s >= 1.15 * streaming.end_s
    assert waiting.lags.largest <= 2


@pytest.mark.parametrize(("rho", "eta"), [(0.5, 4), (1.0, 2)])
def test_mean_lag_obeys_littles_law_where_slots_bind_and_where_the_bound_does(
    rho: float, eta: int
) -> None:
    setting = Setting.balanced(
        rho=rho, max_policy_lag=eta, num_steps=24, takes="whole groups", lengths=HEAVY
    )
    outcome = Simulation(setting).run()

    predicted = predicted_lag(outcome, GROUPS_PER_STEP)
    assert measured_lag(outcome) == pytest.approx(predicted, rel=0.05)
    assert abs(leaked_lag(outcome, GROUPS_PER_STEP)) < 0.02


def test_the_age_of_weights_is_their_distance_along_the_tree() -> None:
    lineage = Lineage()
    for _ in range(5):
        lineage.advance()
    assert lineage.age(version(2)) == 3

    lineage.fork(3)
    assert lineage.version == WeightVersion(incarnation=1, policy_step=3)
    assert lineage.age(version(5)) == 2  # two steps down the lost branch
    assert lineage.age(version(3)) == 0
    lineage.advance()
    assert lineage.age(version(5)) == 3
    assert lineage.age(version(4, incarnation=1)) == 0
    assert lineage.age(version(1)) == 3


@pytest.mark.parametrize(
    ("lengths", "kappa"),
    [(Lognormal(0.8, 4.0), 3.0), (Lognormal(1.2, 8.0), 4.6), (Pareto(1.5, 16.0), 4.6)],
)
def test_lengths_have_mean_one_a_cap_and_the_tail_they_are_named_for(
    lengths: Lengths, kappa: float
) -> None:
    source = random.Random(1)
    drawn = [lengths.sample(source) for _ in range(50_000)]

    assert sum(drawn) / len(drawn) == pytest.approx(1.0, abs=0.03)
    assert max(drawn) == pytest.approx(lengths.longest)
    assert tail_ratio(lengths, SIMULATED_GROUP_SIZE, 4_000) == pytest.approx(kappa, rel=0.05)


def test_a_workload_is_the_same_whoever_asks_and_in_which_order() -> None:
    first, second = (Workload(Lognormal(), 4, seed=5) for _ in range(2))
    backwards = [second.group(n) for n in reversed(range(9))]

    assert [first.group(n) for n in range(9)] == backwards[::-1]
    assert Workload(Lognormal(), 4, seed=6).group(0) != first.group(0)


def test_the_law_is_as_published() -> None:
    assert law(eta=2, rho=1.0, kappa=3.0, w=1) == pytest.approx(0.75)
    assert law(eta=3, rho=1.0, kappa=3.0, w=1) == 1.0
    assert law(eta=2, rho=1.0, kappa=3.0, w=2) == pytest.approx(0.6)


def test_a_fleet_around_the_whole_server_trains_what_it_samples() -> None:
    run = FleetRun(num_actors=5, groups_per_step=10)
    run.start()

    cpu_s = run.advance(num_rollouts=60 * GROUP_SIZE)

    outstanding = run.num_sampled - run.num_trained  # at most three batches, with a lag of two
    assert 0 <= outstanding <= 30 * GROUP_SIZE
    assert 0 < cpu_s < 0.1
