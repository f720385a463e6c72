"""Learners die, hang and are stopped; a short form of ``make chaos-learner``."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.learner.campaign import Campaign, Death, numbered_deaths, random_deaths
from tests.chaos.learner.rank import Zygote


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Imports once what all learners of these tests need."""
    parent = Zygote(tmp_path_factory.mktemp("zygote") / "model")
    yield parent
    parent.close()


@pytest.mark.slow
def test_a_learner_killed_anywhere_arrives_at_the_bits_of_one_left_alone(
    tmp_path: Path, zygote: Zygote
) -> None:
    deaths = [*numbered_deaths(range(4, 40, 9), 1), *random_deaths(3, 1, random.Random(1))]
    outcome = Campaign(tmp_path, "deaths", 1, 1, zygote).run(deaths)
    assert outcome.violations == []
    assert outcome.num_trials == 7
    assert outcome.num_checkpoints_checked > 3


@pytest.mark.slow
def test_two_ranks_one_of_them_killed_halted_or_stopped_arrive_at_the_same_bits(
    tmp_path: Path, zygote: Zygote
) -> None:
    deaths = [
        *numbered_deaths((12,), 2),
        Death(after_s=1.0, rank=0, signal=signal.SIGSTOP),
        Death(after_s=3.0, rank=1, signal=signal.SIGTERM),
        Death(after_s=2.0, rank=0),
    ]
    outcome = Campaign(tmp_path, "ranks", 1, 2, zygote).run(deaths)
    assert outcome.violations == []
    assert len(outcome.noticed_s) == 3, "each death of one rank is noticed by the other"
    said = (tmp_path / "run/learner.log").read_text()
    assert (
        "rank 1 ends: the store of the ranks gave no answer for 5 s: the process that holds" in said
    )
    assert len(outcome.stopped_s) == 1, "one rank that is asked to stop stops both"
