"""Documents of a packed row, each attended to by itself or all of them under one mask.

``python -m learner.studies.attention_study`` prints one JSON object. Every cell has as many tokens,
in rows of so many documents of one length; both ways compute forward and backward of one layer, the
mask being there already, as it is for all layers but the first. Time is processor time of one
thread, the two taking turns. ``chosen`` is the way that the learner takes for such rows.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.torch.attention import block_causal_mask
from learner.models.attention import (
    BY_DOCUMENT,
    attend_by_document,
    document_ids,
    packed_mask,
)

NUM_TOKENS = 4096
LENGTHS = (16, 32, 64, 128, 256)
DOCUMENTS_PER_ROW = (2, 4, 8)
NUM_HEADS = 4
HEAD_SIZE = 64
REPEATS = 5


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    cells = [cell(length, count) for length in LENGTHS for count in DOCUMENTS_PER_ROW]
    figures = {
        "cells": cells,
        "num_tokens": NUM_TOKENS,
        "num_heads": NUM_HEADS,
        "head_size": HEAD_SIZE,
    }
    json.dump(figures, sys.stdout)


def cell(length: int, documents_per_row: int) -> dict[str, object]:
    """Seconds of both ways for rows of ``documents_per_row`` documents of ``length`` tokens."""
    row_length = length * documents_per_row
    num_rows = NUM_TOKENS // row_length
    borders = torch.arange(0, NUM_TOKENS + 1, length)
    chosen = packed_mask(BY_DOCUMENT, borders, num_rows, row_length)
    masks = ways(borders, num_rows, row_length)
    inputs = make_inputs(num_rows, row_length)
    return {
        "document_tokens": length,
        "documents_per_row": documents_per_row,
        "pairs_per_document": row_length * length,
        "hidden_pairs_per_document": (row_length - length) * length,
        "chosen": "mask" if chosen.dtype == torch.bool else "by_document",
        "seconds": _seconds(masks, inputs),
    }


def ways(borders: Tensor, num_rows: int, row_length: int) -> dict[str, Tensor]:
    """What attention is given: a mask [R, 1, L, L], or the borders of the documents."""
    return {
        "mask": block_causal_mask(document_ids(borders, num_rows, row_length)),
        "by_document": borders.view(1, 1, 1, -1),
    }


def make_inputs(num_rows: int, row_length: int) -> list[Tensor]:
    """Random queries, keys and values, [R, H, L, D] each."""
    source = torch.Generator().manual_seed(0)
    shape = (num_rows, NUM_HEADS, row_length, HEAD_SIZE)
    return [torch.randn(shape, generator=source).requires_grad_() for _ in range(3)]


def value_and_gradients(inputs: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
    """Forward and backward."""
    query, key, value = inputs
    output, _ = attend_by_document(nn.Module(), query, key, value, mask, scaling=HEAD_SIZE**-0.5)
    return [output, *torch.autograd.grad(output.square().mean(), inputs)]


def _seconds(masks: dict[str, Tensor], inputs: Sequence[Tensor]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in masks}
    for turn in range(REPEATS + 1):
        for name, mask in masks.items():
            started_s = time.process_time()
            value_and_gradients(inputs, mask)
            if turn:  # the first warms up
                found[name].append(time.process_time() - started_s)
    return found


if __name__ == "__main__":
    main()
