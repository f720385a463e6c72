"""How old a token is, also when the branch it was sampled on was lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import CheckpointError
from learner.checkpoints.lineage import Lineage, read_lineage, write_lineage
from tests.builders import version


def test_without_forks_lag_is_the_difference_of_steps() -> None:
    lineage = Lineage()
    assert lineage.incarnation == 0
    assert lineage.lag(version(3), 5) == 2
    assert lineage.lag(version(5), 5) == 0
    assert not lineage.is_lost(version(5))


def test_a_token_of_a_lost_branch_is_as_old_as_the_way_back_and_forward() -> None:
    lineage = Lineage().forked(10)
    assert lineage.incarnation == 1
    assert lineage.is_lost(version(12))
    assert lineage.lag(version(12), 11) == (11 - 10) + (12 - 10)
    assert not lineage.is_lost(version(10))
    assert lineage.lag(version(10), 11) == 1
    assert lineage.lag(version(11, incarnation=1), 11) == 0


def test_the_earliest_later_fork_decides_after_several() -> None:
    lineage = Lineage().forked(10).forked(6).forked(9)
    assert lineage.incarnation == 3
    # 0.12 left the surviving line at 6, where incarnation 2 began
    assert lineage.lag(version(12), 9) == (9 - 6) + (12 - 6)
    assert lineage.lag(version(8, incarnation=2), 9) == 1
    assert lineage.lag(version(11, incarnation=2), 9) == 0 + 2


def test_the_lineage_survives_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "learner" / "lineage.json"
    assert read_lineage(path) == Lineage()
    write_lineage(path, Lineage().forked(4))
    assert read_lineage(path) == Lineage().forked(4)


def test_a_damaged_file_is_not_taken_for_a_fresh_run(tmp_path: Path) -> None:
    path = tmp_path / "lineage.json"
    path.write_text('{"forks": [{"incarnation": 1}]}')
    with pytest.raises(CheckpointError, match="restore the file"):
        read_lineage(path)
