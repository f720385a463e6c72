"""Where attention with one mask ends to be faster than attention document by document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploy.bench.result import BenchResult, hardware_name, spread, versions
from deploy.bench.study import load_average, median_ratio, run_study

MAX_LOSS = 1.5
"""Time of the way that the learner takes over that of the better one, in the worst cell."""

Cell = Mapping[str, Any]
_MEASURES = ("pairs_per_document", "hidden_pairs_per_document")
"""What a limit can be set on: pairs that a mask computes, or those of them that it hides."""


def bench_attention() -> BenchResult:
    """Measure; the ratio is the time of the learner's choice over the better way's, worst cell."""
    figures = run_study("learner.studies.attention_study")
    cells: Sequence[Cell] = figures.pop("cells")
    losses = [loss_of(cell, cell["chosen"]) for cell in cells]
    masked = [cell["pairs_per_document"] for cell in cells if cell["chosen"] == "mask"]
    by_limit = {name: losses_by_limit(cells, name) for name in _MEASURES}
    return BenchResult(
        name="attention",
        ratio=max(losses),
        goal=f"<= {MAX_LOSS:g} x the time of the better way in every cell",
        passed=max(losses) <= MAX_LOSS,
        baseline="the better of one call with a mask and a call a document, by hindsight",
        hardware=hardware_name(),
        details={
            "pairs_per_document_up_to_which_a_mask_is_taken": max(masked, default=0),
            **{
                f"{name}_up_to_which_one_should_be": best_limit(by_limit[name]) for name in by_limit
            },
            "worst_loss_by_limit": by_limit,
            "cells": [describe(cell) for cell in cells],
            **figures,
            "processor_time": {
                name: spread([second for cell in cells for second in cell["seconds"][name]])
                for name in ("mask", "by_document")
            },
            "load_average": load_average(),
            "gpu": "not measured",
            "versions": versions("torch", "transformers"),
        },
    )


def loss_of(cell: Cell, way: str) -> float:
    """Time of ``way`` over that of the better one, at least 1."""
    other = "mask" if way == "by_document" else "by_document"
    return max(1.0, median_ratio(cell["seconds"], way, other))


def losses_by_limit(cells: Sequence[Cell], measure: str) -> dict[int, float]:
    """Worst loss if a mask were taken up to that much of ``measure``; 0: never."""
    limits = (0, *sorted({int(cell[measure]) for cell in cells}))
    return {
        limit: max(
            loss_of(cell, "mask" if cell[measure] <= limit else "by_document") for cell in cells
        )
        for limit in limits
    }


def best_limit(losses: Mapping[int, float]) -> int:
    """The limit that loses least."""
    return min(losses, key=losses.__getitem__)


def describe(cell: Cell) -> str:
    """One line: the rows, and both sides."""
    mask_ms, own_ms = (
        1e3 * spread(cell["seconds"][name])["median_s"] for name in ("mask", "by_document")
    )
    speed_up = median_ratio(cell["seconds"], "mask", "by_document")
    return (
        f"{cell['documents_per_row']} of {cell['document_tokens']} tokens, "
        f"{cell['pairs_per_document']} pairs: mask {mask_ms:.1f} ms, by document {own_ms:.1f} ms, "
        f"ratio {speed_up:.2f}, taken: {cell['chosen']}"
    )
