"""More is offered than the broker may hold in memory, and nobody is there to take it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.broker.flood import Flood, flood

_LEAST_CAP_BYTES = 192 << 20
"""The smallest that ``broker.max_memory_bytes`` takes."""


@pytest.mark.slow
def test_producers_wait_and_say_so_and_nothing_is_lost(tmp_path: Path) -> None:
    size = Flood(offered_bytes=420_000_000, memory_bytes=_LEAST_CAP_BYTES)
    outcome = flood(tmp_path, size, seed=1)
    assert outcome.violations == []
    assert outcome.num_acknowledged == 2 * size.num_groups
    assert outcome.measures["blocked, s"] > 0
