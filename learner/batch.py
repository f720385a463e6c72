"""Packed microbatches: documents side by side in rows, with no attention across their borders.

What the loss needs is flat, one entry a trained token [T]: no padding to mask out, and the head
computes nothing for prompts. Completion tokens that are not trained are read as context and have no
entry, so nothing about them can reach the gradient or a count. ``positions[t]`` is the place in the
flattened [R * L] rows whose hidden state predicts ``target_ids[t]``, so targets are shifted by
construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.torch.attention import block_causal_mask
from common.types import RolloutId
from learner.layout import MicrobatchLayout

Int64Array = npt.NDArray[np.int64]
_Number = TypeVar("_Number", bound=np.generic)
PADDING_ID = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One prompt with its completion, as the learner trains on it."""

    prompt_token_ids: npt.NDArray[np.integer]
    """[P], P >= 1: the first completion token needs something to be predicted from."""
    completion_token_ids: npt.NDArray[np.integer]
    """[L], L >= 1."""
    behavior_logprobs: npt.NDArray[np.float32]
    """[L] nats, of the policy that sampled."""
    advantage: float = 1.0
    """Of every token of the completion."""
    weight: float = 1.0
    """Factor of every token in the unnormalised sum."""
    lag: int = 0
    """Steps between the weights that sampled its oldest trained token and those trained now."""
    trained: npt.NDArray[np.bool_] | None = None
    """[L], True where a token carries gradient; None means everywhere."""
    reference_logprobs: npt.NDArray[np.float32] | None = None
    """[L] nats, of the reference policy; None where the learner computes them, or needs none."""

    @property
    def length(self) -> int:
        """P + L."""
        return len(self.prompt_token_ids) + len(self.completion_token_ids)

    @property
    def num_trained(self) -> int:
        """Completion tokens that carry gradient."""
        if self.trained is None:
            return len(self.completion_token_ids)
        return int(np.count_nonzero(self.trained))

    def select_trained(self, values: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
        """Those of ``values`` [L] that belong to trained tokens."""
        return values if self.trained is None else values[self.trained]


@dataclass(frozen=True, slots=True, kw_only=True)
class Microbatch:
    """Tensors of one forward-backward: R rows of L places, T trained tokens."""

    input_ids: Tensor
    """int64 [R, L]."""
    position_ids: Tensor
    """int64 [R, L], from 0 in every document."""
    attention_mask: Tensor | None
    """bool [R, 1, L, L], True where a place may look; None means plain causal rows."""
    positions: Tensor
    """int64 [T], into the flattened rows: the place before each trained token."""
    target_ids: Tensor
    """int64 [T], the trained tokens."""
    behavior_logprobs: Tensor
    """float32 [T] nats."""
    advantages: Tensor
    """float32 [T]."""
    weights: Tensor
    """float32 [T]: factor of each token in the unnormalised sum."""
    lags: Tensor
    """int64 [T]: policy lag of the document that the token is of."""
    lengths: Tensor
    """int64 [S]: trained tokens of each document, in the order of the tokens."""
    reference_logprobs: Tensor | None = None
    """float32 [T] nats, where they came with the documents."""

    def to(self, device: torch.device) -> Microbatch:
        """The same microbatch on ``device``."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {
            name: tensor.to(device, non_blocking=True)
            for name, tensor in tensors.items()
            if tensor is not None
        }
        return replace(self, **moved)


def build_microbatch(
    layout: MicrobatchLayout, documents: Mapping[RolloutId, Document]
) -> Microbatch:
    """Tensors for ``layout``; every rollout that it names must be in ``documents``."""
    rows = [[documents[rollout_id] for rollout_id in row] for row in layout.rows]
    return pack(rows, layout.row_length)


def pack(rows: Sequence[Sequence[Document]], row_length: int) -> Microbatch:
    """Lay ``rows`` of documents out side by side.

    Raises ``ValueError`` where a row overflows, and where only some documents have
    ``reference_logprobs``.
    """
    shape = (len(rows), row_length)
    input_ids = np.full(shape, PADDING_ID, dtype=np.int64)
    position_ids = np.tile(np.arange(row_length, dtype=np.int64), (len(rows), 1))
    document_ids = np.full(shape, -1, dtype=np.int64)
    positions: list[Int64Array] = []
    for row, documents in enumerate(rows):
        start = 0
        for number, document in enumerate(documents):
            end = start + document.length
            if end > row_length:
                raise ValueError(f"documents of {end} tokens do not fit a row of {row_length}")
            border = start + len(document.prompt_token_ids)
            input_ids[row, start:border] = document.prompt_token_ids
            input_ids[row, border:end] = document.completion_token_ids
            position_ids[row, start:end] = np.arange(document.length)
            document_ids[row, start:end] = number
            before = row * row_length + np.arange(border - 1, end - 1, dtype=np.int64)
            positions.append(document.select_trained(before))
            start = end
    flat = [document for documents in rows for document in documents]
    packed = any(len(documents) > 1 for documents in rows)
    return Microbatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        attention_mask=block_causal_mask(torch.from_numpy(document_ids)) if packed else None,
        positions=torch.from_numpy(np.concatenate(positions)),
        target_ids=_joined(
            [document.select_trained(document.completion_token_ids) for document in flat], np.int64
        ),
        behavior_logprobs=_joined(
            [document.select_trained(document.behavior_logprobs) for document in flat], np.float32
        ),
        advantages=_per_token(flat, [document.advantage for document in flat], np.float32),
        weights=_per_token(flat, [document.weight for document in flat], np.float32),
        lags=_per_token(flat, [document.lag for document in flat], np.int64),
        lengths=torch.tensor([document.num_trained for document in flat], dtype=torch.int64),
        reference_logprobs=_reference_logprobs(flat),
    )


def empty_microbatch() -> Microbatch:
    """A forward-backward of weight 0, for a rank that has less work than the others."""
    token = np.array([PADDING_ID])
    document = Document(
        prompt_token_ids=token,
        completion_token_ids=token,
        behavior_logprobs=np.zeros(1, dtype=np.float32),
        advantage=0.0,
        weight=0.0,
    )
    return pack([[document]], document.length)


def _reference_logprobs(documents: Sequence[Document]) -> Tensor | None:
    """float32 [T]; None where no document has any."""
    found = [
        document.select_trained(document.reference_logprobs)
        for document in documents
        if document.reference_logprobs is not None
    ]
    if found and len(found) < len(documents):
        raise ValueError(
            f"{len(found)} of {len(documents)} documents have reference log-probabilities"
        )
    return _joined(found, np.float32) if found else None


def _joined(arrays: Sequence[npt.NDArray[np.generic]], dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.concatenate([array.astype(dtype) for array in arrays]))


def _per_token(
    documents: Sequence[Document], values: Sequence[float], dtype: type[np.generic]
) -> Tensor:
    lengths = [document.num_trained for document in documents]
    return torch.from_numpy(np.repeat(np.asarray(values, dtype=dtype), lengths))
