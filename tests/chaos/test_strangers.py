"""Strangers at the broker's port: not one message of theirs gets in, and nobody else notices.

``HEADRACE_STRANGERS=30000`` and ``HEADRACE_UNKNOWN_KEYS=100000`` make these the full trials.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.strangers import trial
from tests.integration.secure_broker import SecureBroker

_NUM_CONNECTIONS = int(os.environ.get("HEADRACE_STRANGERS", "3000"))
_NUM_UNKNOWN_KEYS = int(os.environ.get("HEADRACE_UNKNOWN_KEYS", "2000"))
_MAX_GROWTH_BYTES = 32 << 20
"""Fixed, whatever the number of connections: buffers that are reached once and then reused."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_no_junk_reaches_the_broker_behind_keys(tmp_path: Path) -> None:
    broker = SecureBroker(tmp_path, dead_after_s=120.0)
    outcome = trial(broker, "junk", _NUM_CONNECTIONS)
    assert outcome.messages_let_in == 0
    assert outcome.num_denied > 0
    assert outcome.num_honest_replies > 0
    assert outcome.rss_growth_bytes < _MAX_GROWTH_BYTES


def test_the_same_junk_reaches_a_broker_without_keys_and_is_refused_there(tmp_path: Path) -> None:
    """Without keys libzmq takes some of it for messages: the decoder is then what holds."""
    broker = SecureBroker(tmp_path, dead_after_s=120.0, has_keys=False)
    outcome = trial(broker, "junk", 1000)
    assert outcome.messages_let_in > 0
    assert outcome.num_honest_replies > 0


def test_unknown_keys_are_refused_one_by_one_and_leave_nothing_behind(tmp_path: Path) -> None:
    broker = SecureBroker(tmp_path, dead_after_s=120.0)
    outcome = trial(broker, "unknown-keys", _NUM_UNKNOWN_KEYS)
    assert outcome.messages_let_in == 0
    assert outcome.num_denied == _NUM_UNKNOWN_KEYS
    assert outcome.num_honest_replies > 0
    assert outcome.rss_growth_bytes < _MAX_GROWTH_BYTES
