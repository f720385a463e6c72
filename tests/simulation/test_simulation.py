"""Whole runs of the real broker in a simulated world; ``books.py`` says what is promised."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from broker.ledger_state import LedgerRules
from tests.simulation.campaign import run_campaign
from tests.simulation.nemesis import KINDS
from tests.simulation.scenario import Scenario
from tests.simulation.world import simulate

REPOSITORY = Path(__file__).parents[2]
STEPS = int(os.environ.get("HEADRACE_SIMULATION_STEPS", "24000"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_promise_is_broken_whatever_fails() -> None:
    seeds = (f"ci.{number}" for number in itertools.count())
    campaign = run_campaign(seeds, STEPS)
    assert campaign.failed is None, campaign.failed
    assert campaign.tally["group trained"] > 0
    assert sum(campaign.faults.values()) > STEPS / 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seen", "rules", "configuration"),
    [
        ("events forgotten", {}, {"acks": "relaxed"}),
        ("spans masked", {"staleness": "mask_tokens"}, {}),
        ("group stale", {"staleness": "drop_group"}, {}),
        ("reference passes alone", {"has_verifier_reference": True}, {}),
        ("group trained", {}, {"payloads": "store", "num_stores": 2}),
        ("payloads lost", {}, {"payloads": "direct"}),
    ],
)
def test_no_configuration_breaks_a_promise(
    seen: str, rules: dict[str, Any], configuration: dict[str, Any]
) -> None:
    seed = f"configuration.{seen}"
    small = LedgerRules(group_size=2, groups_per_step=3, num_steps=12, max_policy_lag=2, **rules)
    scenario = Scenario(
        rules=small,
        num_actors=3,
        num_verifiers=2,
        enabled=KINDS,
        rate=2.0,
        storm_s=60.0,
        poison_every=0,
        num_prompts=None,
        **configuration,
    )
    outcome = simulate(seed, scenario=scenario)
    assert outcome.violation is None, outcome.violation
    assert outcome.tally[seen] > 0


def test_a_run_without_faults_trains_exactly_what_it_admits() -> None:
    seed = next(seed for seed in _train_seeds() if not Scenario.draw(seed).poison_every)
    outcome = simulate(seed, without=KINDS)
    rules = Scenario.draw(seed).rules
    assert outcome.violation is None
    assert outcome.tally["group trained"] == rules.num_steps * rules.groups_per_step
    ended = {name for name in outcome.tally if name.startswith("group ")}
    assert ended == {"group trained"}


def test_the_same_seed_takes_the_same_steps_in_another_process() -> None:
    seed = "repeat.0"
    told = f"trace {run_campaign(iter([seed]), 1).trace_hash:08x}"
    for hash_seed in ("1", "2"):
        again = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--only", seed],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert told in again.stdout


def test_a_disk_that_forgets_what_it_called_durable_is_found_out() -> None:
    outcomes = (simulate(f"liar.{number}", has_lying_disk=True) for number in range(12))
    violation = next((o.violation for o in outcomes if o.violation is not None), None)
    assert violation is not None
    assert violation.promise in ("G1", "G7", "lost", "unexpected error")


def test_jumps_of_the_wall_clock_change_nothing() -> None:
    seed = "repeat.0"
    straight = simulate(seed).trace_hash
    jumps = (1e9 + (-1) ** n * 1e5 * n for n in itertools.count())
    with patch.object(time, "time", lambda: next(jumps)):
        assert simulate(seed).trace_hash == straight


@pytest.mark.parametrize("number", range(4))
def test_dynamic_sampling_fills_every_batch_with_groups_that_teach(number: int) -> None:
    seed = f"dynamic.{number}"
    drawn = Scenario.draw(seed)
    rules = LedgerRules(
        group_size=3, groups_per_step=4, num_steps=12, max_policy_lag=number, dynamic_sampling=True
    )
    scenario = replace(drawn, rules=rules, poison_every=0, num_prompts=None)
    outcome = simulate(seed, without=KINDS, scenario=scenario)
    assert outcome.violation is None
    assert outcome.tally["group trained"] == rules.num_steps * rules.groups_per_step
    assert outcome.tally["group zero_advantage"] > 0
    ended = {name for name in outcome.tally if name.startswith("group ")}
    assert ended <= {"group trained", "group zero_advantage", "group run_end"}


def _train_seeds() -> list[str]:
    seeds = [f"calm.{number}" for number in range(20)]
    return [seed for seed in seeds if Scenario.draw(seed).rules.kind == "train"]
