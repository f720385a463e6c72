"""The claims of ``broker.admission`` under heavy tails, late weights and failures of every kind."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.admission import Staleness
from broker.ledger_state import LedgerRules
from common.types import EvictReason
from tests.property.heavy_tailed_run import HeavyTailedRun

POLICIES: tuple[Staleness, ...] = ("wait", "mask_tokens", "drop_group")


def _rules(staleness: Staleness, eta: int, per_step: int = 3, num_steps: int = 10) -> LedgerRules:
    return LedgerRules(
        group_size=2,
        groups_per_step=per_step,
        num_steps=num_steps,
        max_policy_lag=eta,
        staleness=staleness,
    )


@pytest.mark.parametrize("staleness", POLICIES)
@pytest.mark.parametrize("tail", ["pareto", "lognormal"])
@pytest.mark.parametrize("seed", range(4))
def test_heavy_tails_never_break_the_bound(staleness: Staleness, tail: str, seed: int) -> None:
    run = HeavyTailedRun(_rules(staleness, eta=2), seed, tail=tail)
    run.run()
    assert run.ledger.counts.dead_lettered == 0
    assert run.largest_lag > 0, "nothing was off-policy: the run says nothing about the bound"


@given(
    staleness=st.sampled_from(POLICIES),
    eta=st.integers(0, 4),
    per_step=st.integers(1, 4),
    fault_rate=st.sampled_from([0.0, 0.05, 0.2]),
    forks=st.booleans(),
    publish_s=st.sampled_from([0.01, 1.0, 5.0]),
    seed=st.integers(0, 1 << 16),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_run_ends_within_the_bound_whatever_fails_or_comes_late(
    staleness: Staleness,
    eta: int,
    per_step: int,
    fault_rate: float,
    forks: bool,
    publish_s: float,
    seed: int,
) -> None:
    rules = _rules(staleness, eta, per_step)
    run = HeavyTailedRun(rules, seed, fault_rate=fault_rate, forks=forks, publish_s=publish_s)
    run.run()
    if staleness == "wait" and not forks:
        assert EvictReason.STALE not in run.evicted


def test_each_policy_pays_for_a_straggler_in_its_own_way() -> None:
    """Over the same seeds: masks under one policy, dropped groups under another, else neither."""
    runs = {
        staleness: [HeavyTailedRun(_rules(staleness, eta=1), seed) for seed in range(6)]
        for staleness in POLICIES
    }
    for several in runs.values():
        for run in several:
            run.run()
    masked = {policy: sum(r.num_masked_tokens for r in some) for policy, some in runs.items()}
    stale = {
        policy: sum(r.evicted.get(EvictReason.STALE, 0) for r in some)
        for policy, some in runs.items()
    }
    times = {policy: sum(r.now_s for r in some) for policy, some in runs.items()}
    assert masked["mask_tokens"] > 0
    assert masked["wait"] == masked["drop_group"] == 0
    assert stale["drop_group"] > 0
    assert stale["wait"] == stale["mask_tokens"] == 0
    assert times["wait"] > max(times["mask_tokens"], times["drop_group"])
