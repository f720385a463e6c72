"""A sampler without a model: completions come when the test lets them, loads fail when it says."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from actors.generation.sampler import SampledCompletion, SampleRequest
from common.errors import DataError, WeightLoadError
from common.types import VersionSpan, WeightVersion
from common.weight_layout import WeightManifest

POISON_TOKEN = 666
"""A prompt that holds it cannot be served."""


class ScriptedSampler:
    """Finishes one request a step, in order, as long as ``gate`` is open.

    A completion of prompt ``[.., p]`` is ``[p, 1]``. ``score`` answers ``logprob`` everywhere.
    """

    def __init__(self, version: WeightVersion) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.waiting: list[SampleRequest] = []
        self.submitted: list[SampleRequest] = []
        self.aborted: list[str] = []
        self.loads: list[Mapping[str, torch.Tensor]] = []
        self.calls: list[str] = []
        self.num_load_failures = 0
        self.step_error: Exception | None = None
        self.logprob = -0.5
        self.is_closed = False
        self._version = version
        self._is_partial = False

    @property
    def num_running(self) -> int:
        return len(self.waiting)

    @property
    def serving_version(self) -> WeightVersion:
        return self._version

    @property
    def is_partial(self) -> bool:
        return self._is_partial

    def submit(self, request: SampleRequest) -> None:
        if POISON_TOKEN in request.prompt_token_ids:
            raise DataError(f"request {request.request_id}: poison")
        self.waiting.append(request)
        self.submitted.append(request)

    def abort(self, request_ids: Collection[str]) -> None:
        self.aborted += sorted(request_ids)
        self.waiting = [item for item in self.waiting if item.request_id not in request_ids]

    def step(self) -> list[SampledCompletion]:
        self.calls.append("step")
        if self._is_partial:
            raise WeightLoadError("the engine holds weights that were not proven")
        if self.step_error is not None:
            raise self.step_error
        if not self.gate.wait(0.01):
            return []
        return [self._completion(self.waiting.pop(0))]

    def load_weights(
        self, staged: Mapping[str, torch.Tensor], manifest: WeightManifest, version: WeightVersion
    ) -> None:
        self.calls.append("load")
        self.loads.append(staged)
        self._is_partial = True
        if self.num_load_failures:
            self.num_load_failures -= 1
            raise WeightLoadError("3 loaded tensors differ")
        self._is_partial = False
        self._version = version

    def score(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        self.calls.append("score")
        return np.full(len(token_ids) - 1, self.logprob, np.float32)

    def close(self) -> None:
        self.is_closed = True

    def _completion(self, request: SampleRequest) -> SampledCompletion:
        return SampledCompletion(
            request_id=request.request_id,
            token_ids=np.array([request.prompt_token_ids[-1], 1], np.int32),
            behavior_logprobs=np.array([-0.25, -0.125], np.float32),
            finish_reason="stop",
            version_spans=(VersionSpan(start=0, version=self._version),),
        )
