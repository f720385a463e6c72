"""From what a rollout's plan and its payload say to the document that is trained on: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from common.arrays import (
    ExpertArray,
    Float32Array,
    Float64Array,
    arrays_from_frames,
    experts_from_frame,
)
from common.config import LossConfig
from common.errors import DataError
from common.types import RolloutHeader, RolloutId
from learner.batches.batch import Document, Int64Array
from learner.batches.layout import PlannedRollout, RoutingShape
from learner.batches.screening import has_foreign_tokens
from learner.objectives.aggregation import token_weight
from learner.objectives.process import token_advantages


def build_document(
    header: RolloutHeader,
    frames: Sequence[memoryview],
    plan: PlannedRollout,
    *,
    references: Mapping[RolloutId, Float32Array | None],
    vocab_size: int,
    loss: LossConfig,
    routing: RoutingShape | None = None,
) -> Document:
    """One rollout as the learner trains on it.

    ``frames`` are those of :func:`common.arrays.arrays_from_frames`, and ``references`` is empty
    where verifiers compute none. With ``routing``, that of the model, the record of its experts
    comes along if it has one. Raises :class:`DataError` for arrays of no possible values.
    """
    arrays = arrays_from_frames(frames)
    reference = references.get(header.rollout_id)
    if references and reference is None:
        raise DataError("reference_logprobs must be finite and at most 0")
    if has_foreign_tokens(arrays, vocab_size):
        raise DataError(f"token ids must be below {vocab_size}")
    return Document(
        prompt_token_ids=arrays.prompt_token_ids,
        completion_token_ids=arrays.completion_token_ids,
        behavior_logprobs=arrays.behavior_logprobs,
        advantage=plan.advantage,
        weight=token_weight(loss.aggregation, plan.num_trained_tokens),
        lag=plan.lag,
        trained=_trained_tokens(header, plan.masked_spans),
        reference_logprobs=reference,
        token_lags=_token_lags(header, plan.span_lags),
        token_advantages=_token_advantages(plan),
        experts=None if routing is None else _experts(header, frames, routing),
        first_routed=0 if header.routing is None else header.routing.start,
    )


def _experts(
    header: RolloutHeader, frames: Sequence[memoryview], model: RoutingShape
) -> ExpertArray | None:
    """[N, layers, top_k]; None where the sampler recorded none."""
    found = header.routing
    if found is None:
        return None
    recorded = RoutingShape(found.num_layers, found.top_k, found.num_experts)
    if recorded != model:
        raise DataError(f"the record of experts must be of {model}, got {recorded}")
    return experts_from_frame(found, frames[3])


def _trained_tokens(
    header: RolloutHeader, masked_spans: Sequence[int]
) -> npt.NDArray[np.bool_] | None:
    """[L], False on the tokens of ``masked_spans``; None where there are none."""
    if not masked_spans:
        return None
    trained = np.ones(header.num_completion_tokens, dtype=np.bool_)
    ranges = header.span_ranges()
    for number in masked_spans:
        start, end = ranges[number]
        trained[start:end] = False
    return trained


def _token_advantages(plan: PlannedRollout) -> Float64Array | None:
    """[L] from the steps; None where all tokens have the same."""
    if not plan.steps:
        return None
    return token_advantages(
        [step.value for step in plan.steps],
        [step.end for step in plan.steps],
        plan.num_completion_tokens,
    )


def _token_lags(header: RolloutHeader, span_lags: Sequence[int]) -> Int64Array | None:
    """[L], the lag of each token's version span; None where there is one span."""
    if len(span_lags) < 2:
        return None
    lags = np.empty(header.num_completion_tokens, dtype=np.int64)
    for lag, (start, end) in zip(span_lags, header.span_ranges(), strict=True):
        lags[start:end] = lag
    return lags
