"""The verdicts of the benchmarks of attention and of checkpoints follow from the seconds."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.bench import attention, checkpoint
from deploy.bench.attention import (
    bench_attention,
    best_limit,
    describe,
    loss_of,
    losses_by_limit,
)
from deploy.bench.result import BenchResult


def _cell(pairs: int, mask_s: float, by_document_s: float, chosen: str = "mask") -> dict[str, Any]:
    return {
        "document_tokens": 16,
        "documents_per_row": 2,
        "pairs_per_document": pairs,
        "hidden_pairs_per_document": pairs // 2,
        "chosen": chosen,
        "seconds": {
            "mask": [mask_s, 2 * mask_s],
            "by_document": [by_document_s, 2 * by_document_s],
        },
    }


CELLS = [_cell(512, 1.0, 4.0), _cell(8192, 2.0, 2.4), _cell(65536, 6.0, 2.0, "by_document")]


def test_the_loss_of_a_way_is_over_the_better_one() -> None:
    assert loss_of(CELLS[0], "mask") == 1.0
    assert loss_of(CELLS[0], "by_document") == 4.0
    assert loss_of(CELLS[2], "mask") == 3.0


def test_the_limit_that_loses_least_lies_between_the_sides() -> None:
    losses = losses_by_limit(CELLS, "pairs_per_document")
    assert losses == pytest.approx({0: 4.0, 512: 1.2, 8192: 1.0, 65536: 3.0})
    assert best_limit(losses) == 8192
    hidden = losses_by_limit(CELLS, "hidden_pairs_per_document")
    assert hidden == pytest.approx({0: 4.0, 256: 1.2, 4096: 1.0, 32768: 3.0})
    assert "512 pairs: mask 1500.0 ms, by document 6000.0 ms, ratio 0.25" in describe(CELLS[0])


def _attention(monkeypatch: pytest.MonkeyPatch, *cells: dict[str, Any]) -> BenchResult:
    monkeypatch.setattr(attention, "run_study", lambda _: {"cells": cells, "num_tokens": 4096})
    return bench_attention()


def test_the_learners_choice_is_judged_by_its_worst_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    good = _attention(monkeypatch, *CELLS)
    assert (good.ratio, good.passed) == (1.0, True)
    assert good.details["pairs_per_document_up_to_which_a_mask_is_taken"] == 8192
    assert good.details["pairs_per_document_up_to_which_one_should_be"] == 8192
    assert good.details["hidden_pairs_per_document_up_to_which_one_should_be"] == 4096
    bad = _attention(monkeypatch, *CELLS[:2], _cell(65536, 6.0, 2.0, "mask"))
    assert (bad.ratio, bad.passed) == (3.0, False)


@pytest.mark.parametrize(("stalled_s", "passed"), [(0.1, True), (0.3, False)])
def test_a_checkpoint_is_judged_by_how_long_training_stands_still(
    stalled_s: float, passed: bool
) -> None:
    result = checkpoint.result_of(
        {
            "num_bytes": 300,
            "num_parameters": 25,
            "stalled_s": [stalled_s, 2 * stalled_s],
            "written_s": [1.5, 3.0],
            "synchronous_s": [1.0, 2.0],
            "plain_s": [0.5, 1.0],
            "slow_down": [1.1, 1.3],
        }
    )
    assert result.ratio == pytest.approx(stalled_s)
    assert result.passed is passed
    assert result.details["synchronous_over_plain"] == 2.0
    assert result.details["bytes_per_second"] == pytest.approx(
        {"stalled": 300 / (1.5 * stalled_s), "synchronous": 200.0, "plain": 400.0}
    )
