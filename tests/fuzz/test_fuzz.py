"""A bounded run of ``python -m tests.fuzz``; the full one throws a million at each."""

from __future__ import annotations

import itertools

import pytest

from tests.contract.samples import SAMPLES
from tests.fuzz.__main__ import damaged_messages
from tests.fuzz.broker import fuzz_broker
from tests.fuzz.decoding import feed_decoder
from tests.fuzz.mutations import whole_message

MAX_GROWTH_BYTES = 5 << 20


def test_whole_messages_decode_and_damaged_ones_are_refused_by_one_error() -> None:
    whole = feed_decoder(whole_message(message) for message in SAMPLES)
    assert whole["decoded"] == len(SAMPLES)
    tally = feed_decoder(itertools.islice(damaged_messages(0, as_insiders=True), 40_000))
    assert tally["refused"] > tally["decoded"] > 0


@pytest.mark.slow
def test_nothing_damaged_reaches_the_ledger_or_stops_the_broker() -> None:
    num_messages = 30_000
    fuzzed = fuzz_broker(damaged_messages(1, as_insiders=False), num_messages, as_insiders=False)
    assert set(fuzzed.answers) <= {"Refused malformed", "Refused unregistered"}
    assert sum(fuzzed.answers.values()) == num_messages
    assert fuzzed.honest_steps > 0
    assert fuzzed.rss_growth_bytes < MAX_GROWTH_BYTES


@pytest.mark.slow
def test_a_registered_client_gone_mad_neither_stops_the_broker_nor_unbalances_it() -> None:
    num_messages = 30_000
    fuzzed = fuzz_broker(damaged_messages(2, as_insiders=True), num_messages, as_insiders=True)
    assert sum(fuzzed.answers.values()) > num_messages * 0.9
    assert fuzzed.rss_growth_bytes < MAX_GROWTH_BYTES
