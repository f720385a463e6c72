"""The sampler on real vLLM, its engine core driven inside this process.

One process means no orphaned engine children, one import of the stack, and no serialisation
between a request and its tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from actors.generation.model_directory import read_tensor_shapes
from actors.generation.sampler import (
    SampledCompletion,
    SampleRequest,
    check_request,
    extend_spans,
)
from actors.generation.vllm_engine import (
    VllmOptions,
    leave_process_groups,
    sampling_params,
    score_params,
    start_engine,
)
from actors.generation.vllm_routing import NoRecorder, RoutingRecorder, routing_recorder
from actors.generation.vllm_weights import engine_weights, load_and_prove
from actors.generation.weight_proof import check_layout
from common.errors import InfraError, ModelDirectoryError, WeightLoadError
from common.types import VersionSpan, WeightVersion
from common.weight_layout import WeightManifest

__all__ = ["VllmOptions", "VllmSampler"]

_SCORE_ID = "\0score"  # a name that no caller would choose


@dataclass(slots=True)
class _Running:
    """A request inside the engine, under the id that the engine gave it."""

    engine_id: str
    version_spans: tuple[VersionSpan, ...]


class VllmSampler:
    """``Sampler`` on vLLM's ``LLMEngine`` with the in-process core client.

    Build, use and close it in one thread. The engine seeds this process's global generators and
    takes the default ``torch.distributed`` group of the process, so a weight transfer beside it
    needs a group of its own.

    Raises ``FatalError`` where vLLM is missing or cannot serve the model directory.
    """

    def __init__(self, options: VllmOptions, version: WeightVersion) -> None:
        self._options = options
        shapes = read_tensor_shapes(options.model_dir)
        self._engine = start_engine(options)
        self._is_closed = False
        (self._model,) = self._engine.apply_model(lambda model: model)
        try:
            check_layout(engine_weights(self._model), shapes, options.model_dir)
            self._recorder = self._new_recorder()
        except ModelDirectoryError:
            self.close()
            raise
        self._vocab_size: int = self._engine.model_config.get_vocab_size()
        self._waiting: dict[str, SampleRequest] = {}
        self._running: dict[str, _Running] = {}
        self._held_back: list[SampledCompletion] = []
        self._set_version(version)
        self._is_partial = False

    @property
    def num_running(self) -> int:
        """Requests submitted and neither reported nor aborted."""
        return len(self._waiting) + len(self._running) + len(self._held_back)

    @property
    def serving_version(self) -> WeightVersion:
        """The version that was proven last."""
        return self._version

    @property
    def is_partial(self) -> bool:
        """True while the engine holds weights that were not proven."""
        return self._is_partial

    def submit(self, request: SampleRequest) -> None:
        """Queue ``request``; ``DataError`` where the model could never serve it."""
        if request.request_id in self._waiting or request.request_id in self._running:
            raise ValueError(f"request id {request.request_id!r} is in flight already")
        check_request(
            request, max_model_len=self._options.max_model_len, vocab_size=self._vocab_size
        )
        # It enters the engine at the next step, so that a load in between finds no prompt that
        # is half prefilled under the old weights and the salt is that of the serving version.
        self._waiting[request.request_id] = request

    def abort(self, request_ids: Collection[str]) -> None:
        """Forget these requests; nothing is reported for them. Unknown ids are ignored."""
        self._engine.abort_request([name for name in request_ids if name in self._running])
        for request_id in request_ids:
            running = self._running.pop(request_id, None)
            if running is not None:
                self._recorder.forget(running.engine_id)
            self._waiting.pop(request_id, None)
        self._held_back = [item for item in self._held_back if item.request_id not in request_ids]

    def step(self) -> list[SampledCompletion]:
        """Decode one token for every running request and return the completions that finished."""
        self._refuse_if_partial()
        completions, self._held_back = self._held_back, []
        self._admit()
        if self._running:
            completions += [self._completion(output) for output in self._engine.step()]
        return completions

    def load_weights(
        self, staged: Mapping[str, torch.Tensor], manifest: WeightManifest, version: WeightVersion
    ) -> None:
        """Load in place between two steps, prove by digest, keep running requests and their KV."""
        self._is_partial = True
        if manifest.version != version:
            raise WeightLoadError(f"manifest of {manifest.version} does not describe {version}")
        load_and_prove(self._model, self._engine.vllm_config, staged, manifest)
        self._set_version(version)
        self._is_partial = False

    def score(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Log-probability (nats, temperature 1) of each token after the first, float32 [L - 1]."""
        self._refuse_if_partial()
        from vllm.inputs.engine import tokens_input

        prompt = tokens_input(list(token_ids))
        engine_id = self._engine.add_request(_SCORE_ID, prompt, score_params())
        while True:
            for output in self._engine.step():
                if output.request_id == _SCORE_ID:
                    self._recorder.forget(engine_id)
                    return _finite(output.prompt_logprobs.logprobs, len(token_ids) - 1, _SCORE_ID)
                self._held_back.append(self._completion(output))

    def close(self) -> None:
        """Free the engine and the process group that it took; further calls do nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._engine.engine_core.shutdown()
        del self._engine, self._model
        leave_process_groups()

    def _new_recorder(self) -> RoutingRecorder:
        if not self._options.record_experts:
            return NoRecorder()
        return routing_recorder(self._engine, self._model)

    def _refuse_if_partial(self) -> None:
        if self._is_partial:
            raise WeightLoadError(
                f"the engine holds weights that were not proven (last proven: {self._version}); "
                "load a complete version before serving"
            )

    def _admit(self) -> None:
        """Move waiting requests into the engine up to its size, first come first served."""
        from vllm.inputs.engine import tokens_input

        while self._waiting and len(self._running) < self._options.max_num_seqs:
            request = self._waiting.pop(next(iter(self._waiting)))
            prompt = tokens_input(
                list(request.prompt_token_ids),
                cache_salt=request.cache_salt or f"version {self._version}",
            )
            engine_id = self._engine.add_request(
                request.request_id, prompt, sampling_params(request)
            )
            spans = extend_spans((), 0, self._version)
            self._running[request.request_id] = _Running(engine_id, spans)

    def _set_version(self, version: WeightVersion) -> None:
        """Open a span in every running request at the number of tokens that it already has.

        Exact because no step is in flight: the engine is stepped by this thread and asynchronous
        scheduling is off. With it on, a step scheduled before the load samples under the old
        weights and is counted after it; its tokens would have to be drained first.
        """
        requests = self._engine.engine_core.engine_core.scheduler.requests
        for running in self._running.values():
            num_tokens = requests[running.engine_id].num_output_tokens
            running.version_spans = extend_spans(running.version_spans, num_tokens, version)
        self._engine.set_weight_version(str(version))
        self._version = version

    def _completion(self, output: Any) -> SampledCompletion:
        running = self._running.pop(output.request_id)
        (sampled,) = output.outputs
        return SampledCompletion(
            request_id=output.request_id,
            token_ids=np.asarray(sampled.token_ids, np.int32),
            behavior_logprobs=_finite(
                sampled.logprobs.logprobs, len(sampled.token_ids), output.request_id
            ),
            finish_reason=_finish_reason(sampled.finish_reason),
            version_spans=running.version_spans,
            routing=self._recorder.take(running.engine_id, sampled),
        )


def _finite(logprobs: Sequence[float], length: int, request_id: str) -> npt.NDArray[np.float32]:
    array = np.asarray(logprobs, np.float32)
    if array.shape != (length,) or not np.isfinite(array).all():
        raise InfraError(
            f"the engine must give {length} finite log-probabilities for {request_id}, "
            f"got {array.shape[0]} of which {int(np.isfinite(array).sum())} are finite"
        )
    return array


def _finish_reason(reason: str | None) -> Literal["stop", "length", "abort"]:
    if reason == "stop":
        return "stop"
    return "length" if reason == "length" else "abort"
