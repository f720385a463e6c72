"""How a model is computed and stepped changes nothing on sharded weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import execution_ranks
from tests.ranks import run_ranks
from tests.unit.learner.small_run import small_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_every_way_to_compute_a_model_changes_nothing_on_two_ranks(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    run_ranks(execution_ranks.main, model, folder=tmp_path, world_size=2, timeout_s=280)


def test_a_difference_on_one_rank_is_told_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="1: [^$]*AssertionError: a gradient"):
        run_ranks(execution_ranks.differ, "a gradient", folder=tmp_path, world_size=2, timeout_s=60)
