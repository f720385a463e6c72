"""A bounded run of ``python -m tests.fuzz``; the full one throws a million at each."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.contract.samples import SAMPLES
from tests.fuzz.broker import Fuzzed
from tests.fuzz.decoding import feed_decoder
from tests.fuzz.mutations import damaged_messages, whole_message
from tests.fuzz.process_report import fuzz_processes

MAX_GROWTH_BYTES = 5 << 20
NUM_MESSAGES = 30_000
PROCESS_MESSAGES = int(os.environ.get("HEADRACE_FUZZ_MESSAGES", "8000"))
"""Half of them by strangers, half by insiders."""
_REPOSITORY = Path(__file__).resolve().parents[2]


def _fuzz_broker(target: str, seed: int) -> Fuzzed:
    """Fuzz in a process of its own: the memory of this one tells of all tests that ran in it."""
    options = (f"--frames={NUM_MESSAGES}", f"--seed={seed}", f"--target={target}", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *options],
        cwd=_REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    return Fuzzed(**{**found, "answers": Counter(found["answers"])})


def test_whole_messages_decode_and_damaged_ones_are_refused_by_one_error() -> None:
    whole = feed_decoder(whole_message(message) for message in SAMPLES)
    assert whole["decoded"] == len(SAMPLES)
    tally = feed_decoder(itertools.islice(damaged_messages(0, as_insiders=True), 40_000))
    assert tally["refused"] > tally["decoded"] > 0


@pytest.mark.slow
def test_nothing_damaged_reaches_the_ledger_or_stops_the_broker() -> None:
    fuzzed = _fuzz_broker("strangers", seed=1)
    assert set(fuzzed.answers) <= {"Refused malformed", "Refused unregistered"}
    assert sum(fuzzed.answers.values()) == fuzzed.num_requests > fuzzed.num_messages
    assert fuzzed.honest_steps > 0
    assert fuzzed.rss_growth_bytes < MAX_GROWTH_BYTES


@pytest.mark.slow
def test_a_registered_client_gone_mad_neither_stops_the_broker_nor_unbalances_it() -> None:
    fuzzed = _fuzz_broker("insiders", seed=2)
    assert sum(fuzzed.answers.values()) > fuzzed.num_requests * 0.9
    assert fuzzed.rss_growth_bytes < MAX_GROWTH_BYTES


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_damaged_messages_leave_a_real_broker_alive_small_and_its_learner_unharmed() -> None:
    found = fuzz_processes(PROCESS_MESSAGES, seed=3, rest_s=0.0)
    for fuzzed in found.values():
        assert fuzzed.violations() == []
        assert sum(fuzzed.answers.values()) > fuzzed.num_requests * 0.9
    assert set(found["strangers"].answers) <= {"Refused malformed", "Refused unregistered"}
    assert found["strangers"].honest_steps > 0
    assert found["insiders"].groups.trained == 0
