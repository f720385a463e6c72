"""Bad links, partitions and a full disk; a short form of ``make chaos-broker``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.broker import namespace
from tests.chaos.broker.campaign import ENDLESS, Campaign
from tests.chaos.broker.network import FAULTS, BadLinks, ProxiedBroker, SlowLinks, working_cast
from tests.chaos.broker.oversize import oversize

_INSIDE = "tests.chaos.broker.inside"


def _needs_namespaces() -> None:
    """Skip where they are refused, and say why; only asked when the test runs."""
    if namespace.refusal():
        pytest.skip(f"namespaces are refused: {namespace.refusal()}")


@pytest.mark.slow
def test_cut_dripping_and_silent_links_lose_and_double_nothing(tmp_path: Path) -> None:
    broker = ProxiedBroker(tmp_path, num_steps=ENDLESS, dead_after_s=0.6)
    outcome = Campaign(tmp_path, "network", 1, broker).run(BadLinks(broker, 25), working_cast)
    assert outcome.violations == []
    assert set(outcome.faults) == set(FAULTS)


@pytest.mark.slow
def test_nobody_on_a_slow_link_is_taken_for_dead(tmp_path: Path) -> None:
    """A delay of half a heartbeat each way, as 1 s is for heartbeats of 2 s."""
    broker = ProxiedBroker(tmp_path, num_steps=ENDLESS, dead_after_s=1.2, heartbeat_s=0.4)
    trouble = SlowLinks(broker, delay_s=0.2, seconds=4.0)
    outcome = Campaign(tmp_path, "slow-links", 1, broker).run(trouble, working_cast)
    assert outcome.violations == []
    assert outcome.measures["steps under delay"] > 0


@pytest.mark.slow
def test_a_machine_cut_off_and_back_doubles_nothing() -> None:
    _needs_namespaces()
    outcome = namespace.run_inside(_INSIDE, "partition", "1", "4")
    assert outcome.violations == []
    assert outcome.num_trials == 4
    assert outcome.measures["given up as dead"] > 0


@pytest.mark.slow
def test_a_full_disk_stalls_producers_and_the_run_goes_on_when_it_is_freed() -> None:
    _needs_namespaces()
    outcome = namespace.run_inside(_INSIDE, "disk", "1", "4", "1024")
    assert outcome.violations == []
    assert outcome.num_trials == 4


@pytest.mark.slow
def test_a_frame_over_the_cap_ends_its_connection_and_no_other(tmp_path: Path) -> None:
    outcome = oversize(tmp_path, seed=1)
    assert outcome.violations == []
    assert outcome.num_trials == 5
