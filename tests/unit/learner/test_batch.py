"""Packed microbatches say what the documents say, shifted by one and kept apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.torch.attention import block_causal_mask
from learner.batches.batch import Document, empty_microbatch, pack


def _document(prompt: list[int], completion: list[int], **fields: float) -> Document:
    return Document(
        prompt_token_ids=np.array(prompt, dtype=np.int32),
        completion_token_ids=np.array(completion, dtype=np.int32),
        behavior_logprobs=-np.arange(len(completion), dtype=np.float32),
        **fields,  # type: ignore[arg-type]  # advantage and weight only
    )


def test_each_completion_token_is_predicted_from_the_place_before_it() -> None:
    rows = [[_document([3, 4], [5, 6]), _document([7], [8])], [_document([9, 9, 9], [1])]]
    packed = pack(rows, row_length=7)
    assert packed.input_ids.tolist() == [[3, 4, 5, 6, 7, 8, 0], [9, 9, 9, 1, 0, 0, 0]]
    assert packed.target_ids.tolist() == [5, 6, 8, 1]
    assert packed.positions.tolist() == [1, 2, 4, 7 + 2]
    flat = packed.input_ids.flatten()
    assert flat[packed.positions + 1].tolist() == packed.target_ids.tolist()


def test_positions_restart_with_every_document() -> None:
    packed = pack([[_document([3, 4], [5]), _document([7], [8])]], row_length=6)
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 1, 5]]


def test_per_token_values_follow_their_document() -> None:
    first = _document([1], [2, 3], advantage=0.5, weight=0.25)
    second = _document([1], [4], advantage=-1.0, weight=1.0)
    packed = pack([[first, second]], row_length=5)
    assert packed.advantages.tolist() == [0.5, 0.5, -1.0]
    assert packed.weights.tolist() == [0.25, 0.25, 1.0]
    assert packed.behavior_logprobs.tolist() == [0.0, -1.0, 0.0]


def test_no_place_looks_forward_or_into_another_document() -> None:
    mask = block_causal_mask(torch.tensor([[0, 0, 1, 1, -1]]))
    assert mask.shape == (1, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_borders_say_where_documents_begin_and_padding_counts_to_the_last() -> None:
    rows = [[_document([3, 4], [5, 6]), _document([7], [8])], [_document([9, 9, 9], [1])]]
    assert pack(rows, row_length=7).borders.tolist() == [0, 4, 7, 14]


def test_a_row_that_overflows_is_refused() -> None:
    with pytest.raises(ValueError, match="documents of 5 tokens do not fit a row of 4"):
        pack([[_document([1, 2], [3, 4, 5])]], row_length=4)


def test_an_empty_microbatch_weighs_nothing() -> None:
    empty = empty_microbatch()
    assert empty.weights.tolist() == [0.0]
    assert empty.target_ids.numel() == 1
