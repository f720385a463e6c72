"""The law against the simulator, and what holds for every split."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.simulation.lengths import Lognormal
from broker.simulation.little import measured_lag
from broker.simulation.run import Simulation
from broker.simulation.setting import Setting
from common.config import LossConfig
from common.errors import ConfigError
from deploy.planning.advice import fitted, sensitivities
from deploy.planning.forecast import Forecast, forecast
from deploy.planning.law import BATCH_WAITING, STREAMING, StepTimes, mean_lag, needed_lag
from deploy.planning.law import utilisation as law
from deploy.planning.lengths import AnswerLengths
from deploy.planning.problem import Problem
from deploy.planning.split import best_split, min_ranks, scales
from tests.unit.deploy import plan_models as models

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"
KAPPA = AnswerLengths(1.0, Lognormal().longest, 0.8).tail_ratio(16)
LAW_TOLERANCE = 0.15
"""Share of the learner's time that the law promises too much, at most; it never promises less."""
LAG_TOLERANCE = 0.2
"""Share by which the mean lag of model and simulator may differ, or so many steps."""


def parts(rho: float, *, train_s: float = 1.0, generate_s: float = 1.0) -> StepTimes:
    return StepTimes(
        generate_s=generate_s,
        train_s=train_s,
        latency_s=rho,
        tail_ratio=KAPPA,
        publish_s=0.0,
    )


def test_the_law_is_what_the_simulator_finds_around_the_real_scheduler() -> None:
    """All twenty pairs of rho and eta of ``headrace bench scheduler``."""
    cells = json.loads((RESULTS / "scheduler-amd-epyc-2cores.json").read_text())["details"]["cells"]
    assert len(cells) == 20
    for cell in cells:
        predicted = law(cell["eta"], cell["rho"], KAPPA, STREAMING)
        assert predicted == pytest.approx(cell["law_streaming"], rel=0.01)
        assert -0.01 <= predicted - cell["utilisation"] <= LAW_TOLERANCE, cell
        assert law(cell["eta"], cell["rho"], KAPPA, BATCH_WAITING) == pytest.approx(
            cell["law_batch_waiting"], rel=0.01
        )


def test_the_mean_lag_is_what_the_simulator_finds() -> None:
    """All twenty pairs of ``headrace bench staleness``; the learner needs one second a step."""
    file = RESULTS / "staleness-intel-xeon-2cores.json"
    table = json.loads(file.read_text())["details"]["mean_lag"]
    seen = 0
    for rho_text, line in table.items():
        rho = float(rho_text.split()[1])
        for eta, lag in re.findall(r"eta (\d+): ([\d.]+)", line):
            times = parts(rho)
            step_s = max(1.0, times.bound_s(int(eta), STREAMING))
            predicted = mean_lag(times, step_s, int(eta), STREAMING)
            assert predicted == pytest.approx(float(lag), rel=LAG_TOLERANCE, abs=LAG_TOLERANCE), (
                rho,
                eta,
            )
            seen += 1
    assert seen == 20


@pytest.mark.parametrize(
    ("rho", "eta", "actors", "publish_s"),
    [(0.5, 2, 1.0, 0.0), (0.5, 1, 0.5, 0.0), (1.0, 2, 2.0, 0.5)],
    ids=["balanced", "half the actors", "twice the actors, slow publication"],
)
def test_the_law_holds_out_of_balance(
    rho: float, eta: int, actors: float, publish_s: float
) -> None:
    """Step times of a fresh simulation, an eighth of the usual batch, within a fifth."""
    setting = Setting.balanced(
        rho=rho,
        max_policy_lag=eta,
        num_steps=24,
        publish_s=publish_s,
        groups_per_step=8,
        slots_per_actor=16,
    )
    setting = replace(setting, num_actors=round(setting.num_actors * actors))
    outcome = Simulation(setting).run()
    first, last = outcome.steady_window()
    step_s = (outcome.steps[last].at_s - outcome.steps[first].at_s) / (last - first)
    rollouts = setting.group_size * setting.groups_per_step
    times = replace(parts(rho, generate_s=rho * rollouts / setting.num_slots), publish_s=publish_s)
    predicted = max(times.generate_s, times.train_s, times.bound_s(eta, STREAMING))
    assert predicted == pytest.approx(step_s, rel=0.2)
    assert mean_lag(times, predicted, eta, STREAMING) == pytest.approx(
        measured_lag(outcome), rel=LAG_TOLERANCE, abs=LAG_TOLERANCE
    )


@given(
    rho=st.floats(0.01, 20),
    kappa=st.floats(1, 6),
    eta=st.integers(0, 32),
    waits=st.sampled_from([1, 2]),
)
def test_the_needed_lag_is_the_least_that_saturates_the_law(
    rho: float, kappa: float, eta: int, waits: int
) -> None:
    times = replace(parts(rho), tail_ratio=kappa)
    assert min(1.0, 1 / times.bound_s(eta, waits)) == pytest.approx(law(eta, rho, kappa, waits))
    needed = needed_lag(times, 1.0, waits)
    assert law(needed, rho, kappa, waits) == pytest.approx(1.0)
    assert needed == 0 or law(needed - 1, rho, kappa, waits) < 1


def test_a_learner_that_needs_the_whole_batch_waits_for_it() -> None:
    problem = models.problem_of()
    assert problem.waits == STREAMING
    assert problem.with_learner(loss=LossConfig(advantage_over="batch")).waits == BATCH_WAITING
    assert problem.with_learner(updates_per_batch=16).waits == BATCH_WAITING


MACHINES = st.fixed_dictionaries(
    {
        "cluster__gpus": st.integers(4, 64),
        "cluster__gpu": st.sampled_from(["H100", "H200", "B200"]),
        "workload__mean_tokens": st.floats(200, 6000),
        "cluster__disk_gb_per_s": st.floats(0.5, 20),
        "assumed__mfu": st.floats(0.1, 0.5),
    }
)


def check(problem: Problem, found: Forecast) -> None:
    """What must hold of every forecast."""
    learner = problem.config.learner
    assert 0 <= found.actor_idle_ratio < 1
    assert 0 <= found.learner_idle_ratio < 1
    assert 0 < found.busy_ratio <= 1
    assert 0 < found.sequences <= found.capacity
    assert 0 <= found.mean_lag <= learner.max_policy_lag
    assert found.in_flight <= (learner.max_policy_lag + 1) * found.rollouts_per_step
    slowest = max(found.generate_s, found.train_s, found.bound_s, found.publication.background_s)
    assert found.step_s == pytest.approx(slowest)
    # Little: what is in flight is what arrives in the time of an answer, loads left out
    sampling_s = found.step_s - found.publication.load_s
    arriving = found.rollouts_per_step / sampling_s * found.latency_s
    if found.sequences >= 1:
        assert found.in_flight == pytest.approx(arriving, rel=1e-3)


@given(options=MACHINES, eta=st.integers(0, 12), ranks=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_every_forecast_obeys_littles_law_and_the_bound(
    options: dict[str, Any], eta: int, ranks: int
) -> None:
    problem = models.problem_of(config=models.make_config(max_policy_lag=eta), **options)
    check(problem, forecast(problem, options["cluster__gpus"] - ranks, ranks))


FASTER = (
    "cluster__memory_gb_per_s",
    "cluster__nvlink_gb_per_s",
    "cluster__host_gb_per_s",
    "cluster__network_gb_per_s",
    "cluster__disk_gb_per_s",
    "cluster__tflops",
    "assumed__gloo_gb_per_s",
    "assumed__load_gb_per_s",
)


@given(
    options=MACHINES,
    key=st.sampled_from(FASTER),
    value=st.floats(1, 3000),
    factor=st.floats(1, 10),
    ranks=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_more_bandwidth_is_never_slower(
    options: dict[str, Any], key: str, value: float, factor: float, ranks: int
) -> None:
    actors = options["cluster__gpus"] - ranks
    slow = forecast(models.problem_of(**options | {key: value}), actors, ranks)
    fast = forecast(models.problem_of(**options | {key: value * factor}), actors, ranks)
    assert fast.step_s <= slow.step_s * (1 + 1e-9)


@given(options=MACHINES)
@settings(max_examples=20, deadline=None)
def test_the_best_split_takes_every_gpu_and_no_other_split_is_a_hundredth_faster(
    options: dict[str, Any],
) -> None:
    gpus = options["cluster__gpus"]
    problem = models.problem_of(models.QWEN3_4B, **options)
    best = best_split(problem)
    assert best.num_actors + best.num_ranks == gpus
    check(problem, best)
    least = min_ranks(problem)
    assert least is not None
    assert best.num_ranks >= least
    for ranks in range(least, gpus):
        if ranks <= 8 or ranks % 8 == 0:
            assert best.step_s <= forecast(problem, gpus - ranks, ranks).step_s * 1.01 + 1e-9


def test_at_balance_the_step_is_the_bubble_free_time() -> None:
    """T* = (M/N)(1/r_g + 1/r_t), when nothing but the two rates counts."""
    config = models.make_config(groups_per_step=4096, max_policy_lag=8)
    problem = models.problem_of(
        config=config,
        cluster__gpus=64,
        measured__decode_tokens_per_s=6_000.0,
        measured__train_tokens_per_s=2_000.0,
        measured__load_s=0.001,
        workload__prompt_tokens=0.0,
    )
    tokens = 4096 * 16 * problem.lengths.mean
    best = best_split(problem)
    ideal_s = tokens / 64 * (1 / 6_000 + 1 / 2_000)
    assert (best.num_actors, best.num_ranks) == (16, 48)
    assert best.step_s == pytest.approx(ideal_s, rel=0.05)
    assert best.busy_ratio > 0.95


def test_beyond_a_point_only_a_larger_batch_uses_more_gpus() -> None:
    problem = models.problem_of(cluster__gpus=64)
    rows = {scale.gpus: scale for scale in scales(problem)}
    assert list(rows) == [8, 64, 512, 4096, 10_000]
    small, large = rows[512].best, rows[10_000].best
    assert small is not None
    assert large is not None
    assert large.steps_per_hour < 1.2 * small.steps_per_hour
    batches = [scale.enough_groups for scale in rows.values()]
    assert batches == sorted(batches)
    assert batches[-1] > 16 * batches[0]
    for scale in rows.values():
        assert scale.enough is not None
        assert scale.enough.busy_ratio > 0.7
        assert scale.enough.num_actors + scale.enough.num_ranks == scale.gpus


def test_context_parallel_divides_the_ranks_of_the_best_split() -> None:
    config = models.make_config()
    learner = replace(config.learner, context_parallel=4, num_ranks=4)
    problem = models.problem_of(config=replace(config, learner=learner))
    assert best_split(problem).num_ranks == 4


def test_what_makes_a_learner_fit_is_found_and_nothing_else_is_changed() -> None:
    """32B on H200: 524 GB of states over six ranks, and 25 GB that do not shrink, are 113 GB."""
    plain = models.make_config(checkpointing="none")
    problem = models.problem_of(models.QWEN25_32B, plain, cluster__gpu="H200")
    assert min_ranks(problem) is None
    fits, changed = fitted(problem)
    assert changed == {"learner.activation_checkpointing": "full"}
    assert min_ranks(fits) == 6
    small = models.problem_of(models.QWEN3_06B, plain, cluster__gpu="H200")
    assert fitted(small) == (small, {})


def test_a_model_that_fits_nowhere_is_refused_with_its_numbers() -> None:
    with pytest.raises(ConfigError, match=r"weights 65\.5 GB, left for the KV cache -0\.5 GB"):
        best_split(models.problem_of(models.QWEN25_32B))
    with pytest.raises(
        ConfigError, match=r"must fit 72 GB, but with 1 of 2 GPUs it needs 1\d\d GB"
    ):
        best_split(models.problem_of(cluster__gpus=2))


def test_what_limits_a_step_is_what_it_is_sensitive_to() -> None:
    """With the learner as the limit, a tenth more utilisation is a tenth more steps."""
    problem = models.problem_of(cluster__gpus=8, assumed__mfu=0.05)
    found = forecast(problem, 4, 4)
    assert found.bottleneck == "training"
    changes = {item.name: item.change for item in sensitivities(problem, found)}
    assert changes["assumed.mfu"] == pytest.approx(0.1, abs=0.01)
    assert changes["cluster.disk_gb_per_s"] == 0
    assert changes["workload.mean_tokens"] < -0.08
