"""Token arrays of a rollout: numpy views over raw little-endian frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.errors import DataError
from common.types import RolloutHeader

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


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
    """Views over the three frames of one rollout.

    Raises :class:`DataError` when a log-probability is not finite or positive: a NaN that enters
    here would end in every weight of the model.
    """
    prompt, completion, logprobs = frames
    arrays = RolloutArrays(
        np.frombuffer(prompt, dtype="<i4"),
        np.frombuffer(completion, dtype="<i4"),
        np.frombuffer(logprobs, dtype="<f4"),
    )
    check_arrays(arrays)
    return arrays


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
    return [
        arrays_from_frames(frames[3 * position : 3 * position + 3])
        for position in range(len(rollouts))
    ]
