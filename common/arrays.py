"""Token arrays of a rollout: numpy views over raw little-endian frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.codec import frames_of_each
from common.errors import DataError
from common.types import RolloutHeader, RoutingHeader

ExpertArray = npt.NDArray[np.unsignedinteger]
Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RolloutArrays:
    """The per-token data of one rollout; see :class:`common.types.RolloutHeader`."""

    prompt_token_ids: Int32Array
    """[P] prompt tokens."""
    completion_token_ids: Int32Array
    """[L] sampled tokens, the stop token included if there was one."""
    behavior_logprobs: Float32Array
    """[L] nats, under the distribution that was sampled from."""

    def frames(self) -> list[memoryview]:
        """The three wire frames, without a copy."""
        return [
            np.ascontiguousarray(self.prompt_token_ids, dtype="<i4").data,
            np.ascontiguousarray(self.completion_token_ids, dtype="<i4").data,
            np.ascontiguousarray(self.behavior_logprobs, dtype="<f4").data,
        ]


def arrays_from_frames(frames: Sequence[memoryview]) -> RolloutArrays:
    """Views over the first three frames of one rollout.

    Raises :class:`DataError` when a log-probability is not finite or positive: a NaN that enters
    here would end in every weight of the model.
    """
    prompt, completion, logprobs = frames[:3]
    arrays = RolloutArrays(
        np.frombuffer(prompt, dtype="<i4"),
        np.frombuffer(completion, dtype="<i4"),
        np.frombuffer(logprobs, dtype="<f4"),
    )
    check_arrays(arrays)
    return arrays


def frame_of_experts(experts: ExpertArray) -> memoryview:
    """The wire frame of [num_tokens, num_layers, top_k], in the element type that it has."""
    little = experts.dtype.newbyteorder("<")
    return np.ascontiguousarray(experts, dtype=little).reshape(-1).view(np.uint8).data


def experts_from_frame(routing: RoutingHeader, frame: memoryview) -> ExpertArray:
    """View over the frame of ``routing``; raises :class:`DataError` for experts that are none."""
    dtype: type[np.unsignedinteger] = np.uint8 if routing.element_bytes == 1 else np.uint16
    experts = np.frombuffer(frame, dtype=np.dtype(dtype).newbyteorder("<"))
    if experts.size and int(experts.max()) >= routing.num_experts:
        raise DataError(
            f"recorded experts must be below {routing.num_experts}, got {int(experts.max())}"
        )
    return experts.reshape(routing.shape)


def logprobs_from_frame(frame: memoryview, name: str) -> Float32Array:
    """View over a frame of log-probabilities; raises :class:`DataError` as for a rollout's."""
    logprobs = np.frombuffer(frame, dtype="<f4")
    _check_logprobs(logprobs, name)
    return logprobs


def check_arrays(arrays: RolloutArrays) -> None:
    """Raise :class:`DataError` unless every token id and log-probability is possible."""
    _check_logprobs(arrays.behavior_logprobs, "behavior_logprobs")
    for token_ids in (arrays.prompt_token_ids, arrays.completion_token_ids):
        if token_ids.size and token_ids.min() < 0:
            raise DataError(f"token ids must be >= 0, got {int(token_ids.min())}")


def _check_logprobs(logprobs: Float32Array, name: str) -> None:
    possible = np.isfinite(logprobs) & (logprobs <= 1e-3)
    if not possible.all():
        place = int(np.argmin(possible))
        raise DataError(
            f"{name} must be finite and at most 0, got {logprobs[place]:g} at token {place}"
        )


def split_frames(
    rollouts: Sequence[RolloutHeader], frames: Sequence[memoryview]
) -> list[RolloutArrays]:
    """Arrays of several rollouts from the frames of one message, in order."""
    return [arrays_from_frames(own) for own in frames_of_each(rollouts, frames)]
