"""Two real ranks with a bad batch: they skip together, replay together, and notice who differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config_loader import run_paths
from learner.checkpoints.step_record import read_step_record, record_path
from tests.integration.guard_ranks import NUM_STEPS, POISONED, REPLAYED, run_ranks
from tests.unit.learner.small_run import GROUP_SIZE, small_config, small_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of two ranks, the first with a poisoned group."""
    root = tmp_path_factory.mktemp("guards")
    small_model(root / "model")
    return root


def test_ranks_skip_a_poisoned_batch_together_and_replay_it_exactly(root: Path) -> None:
    first, second = run_ranks(root, "poison")
    assert first["digests"] == second["digests"]
    assert first["evicted"] == [POISONED]
    paths = run_paths(small_config(root))
    records = [
        read_step_record(record_path(paths.step_records, step, 0)) for step in range(NUM_STEPS)
    ]
    assert [record.group_ids for record in records] == [(0, 2), (3, 4), (5, 6)]
    assert [record.weight_digest for record in records] == first["digests"]

    main, other = run_ranks(root, "replay")
    assert main["digest"] == records[REPLAYED].weight_digest
    assert main["rollouts"] == 2 * GROUP_SIZE  # of both ranks
    assert other["rollouts"] == 0
    assert main["sum"] == pytest.approx(main["loss"], abs=1e-6)


def test_a_rank_whose_buffer_differs_by_one_bit_is_named_on_every_rank(root: Path) -> None:
    for report in run_ranks(root, "corrupt"):
        assert report["error"] == (
            f"after step 7: rank 1 holds another buffer {report['buffer']} than the other ranks "
            "(its memory or its device is at fault: start again from the last checkpoint without "
            "that machine)"
        )
