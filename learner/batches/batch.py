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
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.arrays import ExpertArray, Float64Array
from common.types import RolloutId
from learner.batches.layout import MicrobatchLayout

Int64Array = npt.NDArray[np.int64]
_Number = TypeVar("_Number", bound=np.generic)
PADDING_ID = 0
FREE_ROUTING = -1
"""In place of experts: the router chooses."""


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
    token_lags: Int64Array | None = None
    """[L], steps since each token was sampled; None means ``lag`` everywhere."""
    token_advantages: Float64Array | None = None
    """[L], where tokens have advantages of their own; None means ``advantage`` everywhere."""
    proximal_logprobs: npt.NDArray[np.float32] | None = None
    """[L] nats, of the policy that the batch began with; None before several updates of it."""
    values: Float64Array | None = None
    """[L], of the critic that the batch began with; None without a critic."""
    returns: Float64Array | None = None
    """[L], what the critic learns."""
    experts: ExpertArray | None = None
    """[N, layers, top_k], which experts the sampler computed N tokens in a row with."""
    first_routed: int = 0
    """The first of them, counted from the beginning of the prompt."""

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

    def per_token(self, own: npt.NDArray[_Number] | None, common: float) -> npt.NDArray[_Number]:
        """[num_trained]: those of ``own`` [L] that are trained, or ``common`` for each."""
        if own is None:
            filled: npt.NDArray[Any] = np.full(self.num_trained, common)
            return filled
        return self.select_trained(own)

    def spread_trained(self, values: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
        """[L]: ``values`` of the trained tokens in their places, 0 elsewhere."""
        if self.trained is None:
            return values
        spread = np.zeros(len(self.completion_token_ids), dtype=values.dtype)
        spread[self.trained] = values
        return spread

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
    borders: Tensor
    """int64 [S + 1], into the flattened rows: where each document begins, and the end of the last.

    The padding of a row counts to its last document, which never looks there.
    """
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
    token_lags: Tensor
    """int64 [T]: steps since the token itself was sampled, at most the lag."""
    reference_logprobs: Tensor | None = None
    """float32 [T] nats, where they came with the documents."""
    proximal_logprobs: Tensor | None = None
    """float32 [T] nats, of the policy that the batch began with."""
    values: Tensor | None = None
    """float32 [T], of the critic that the batch began with."""
    returns: Tensor | None = None
    """float32 [T], what the critic learns."""
    experts: Tensor | None = None
    """int16 [R * L, layers, top_k], what each place is routed to; -1 leaves it to the router."""

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

    Raises ``ValueError`` where a row overflows, and where only some documents have what all or
    none must have, such as ``reference_logprobs``.
    """
    flat = [document for documents in rows for document in documents]
    return Microbatch(
        **_places(rows, row_length),
        target_ids=_selected(flat, "completion_token_ids", np.int64),
        behavior_logprobs=_selected(flat, "behavior_logprobs", np.float32),
        advantages=_own_or_common(flat, "token_advantages", "advantage", np.float32),
        weights=_per_token(flat, [document.weight for document in flat], np.float32),
        lags=_per_token(flat, [document.lag for document in flat], np.int64),
        token_lags=_own_or_common(flat, "token_lags", "lag", np.int64),
        lengths=torch.tensor([document.num_trained for document in flat], dtype=torch.int64),
        reference_logprobs=_all_or_none(flat, "reference_logprobs"),
        proximal_logprobs=_all_or_none(flat, "proximal_logprobs"),
        values=_all_or_none(flat, "values"),
        returns=_all_or_none(flat, "returns"),
        experts=_experts(rows, row_length),
    )


def _places(rows: Sequence[Sequence[Document]], row_length: int) -> dict[str, Tensor]:
    """Where every token stands: what of a :class:`Microbatch` is laid out in rows, by field."""
    input_ids = np.full((len(rows), row_length), PADDING_ID, dtype=np.int64)
    position_ids = np.tile(np.arange(row_length, dtype=np.int64), (len(rows), 1))
    borders: list[int] = []
    positions: list[Int64Array] = []
    for row, documents in enumerate(rows):
        start = 0
        for document in documents:
            end = start + document.length
            if end > row_length:
                raise ValueError(f"documents of {end} tokens do not fit a row of {row_length}")
            border = start + len(document.prompt_token_ids)
            input_ids[row, start:border] = document.prompt_token_ids
            input_ids[row, border:end] = document.completion_token_ids
            position_ids[row, start:end] = np.arange(document.length)
            borders.append(row * row_length + start)
            before = row * row_length + np.arange(border - 1, end - 1, dtype=np.int64)
            positions.append(document.select_trained(before))
            start = end
    return {
        "input_ids": torch.from_numpy(input_ids),
        "position_ids": torch.from_numpy(position_ids),
        "borders": torch.tensor([*borders, len(rows) * row_length]),
        "positions": torch.from_numpy(np.concatenate(positions)),
    }


def _experts(rows: Sequence[Sequence[Document]], row_length: int) -> Tensor | None:
    """int16 [R * L, layers, top_k]; None where no document has a record."""
    experts = [document.experts for documents in rows for document in documents]
    recorded = [item for item in experts if item is not None]
    if not recorded:
        return None
    places = np.full((len(rows) * row_length, *recorded[0].shape[1:]), FREE_ROUTING, dtype=np.int16)
    for row, documents in enumerate(rows):
        start = row * row_length
        for document in documents:
            if document.experts is not None:
                first = start + document.first_routed
                places[first : first + len(document.experts)] = document.experts
            start += document.length
    return torch.from_numpy(places)


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


def _all_or_none(documents: Sequence[Document], name: str) -> Tensor | None:
    """float32 [T]; None where no document has any."""
    arrays = [getattr(document, name) for document in documents]
    found = [
        document.select_trained(array)
        for document, array in zip(documents, arrays, strict=True)
        if array is not None
    ]
    if found and len(found) < len(documents):
        words = name.replace("_logprobs", " log-probabilities")
        raise ValueError(f"{len(found)} of {len(documents)} documents have {words}")
    return _joined(found, np.float32) if found else None


def _selected(documents: Sequence[Document], name: str, dtype: type[np.generic]) -> Tensor:
    """[T]: what each document has under ``name`` for its trained tokens."""
    return _joined([item.select_trained(getattr(item, name)) for item in documents], dtype)


def _own_or_common(
    documents: Sequence[Document], own: str, common: str, dtype: type[np.generic]
) -> Tensor:
    """[T]: ``own`` of each token, or ``common`` of its document where tokens have none."""
    arrays = [item.per_token(getattr(item, own), getattr(item, common)) for item in documents]
    return _joined(arrays, dtype)


def _joined(arrays: Sequence[npt.NDArray[np.generic]], dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.concatenate([array.astype(dtype) for array in arrays]))


def _per_token(
    documents: Sequence[Document], values: Sequence[float], dtype: type[np.generic]
) -> Tensor:
    lengths = [document.num_trained for document in documents]
    return torch.from_numpy(np.repeat(np.asarray(values, dtype=dtype), lengths))
